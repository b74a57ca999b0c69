"""Options of the `generate` step."""

from dataclasses import dataclass
from typing import Literal

from sciqa.audit.options import NearCopyOptions
from sciqa.core import storage
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.model_files import local_model_path
from sciqa.core.options import RunOptions, check_name_option
from sciqa.corpus.options import PassagesOptions
from sciqa.models.options import AdapterOptions, ModelEngineOptions, PrecisionOptions, TemperatureOptions
from sciqa.predict.api_options import ApiServerOptions
from sciqa.retrieval.options import EmbedOptions, IndexFolderOptions

Kind = Literal["questions", "instructions"]
#: Filters that `--skip-filters` takes; `sciqa.generate.filters` says what they reject.
Filter = Literal["sentence-not-found", "paraphrased-options", "word-overlap", "near-duplicate"]


@dataclass(kw_only=True)
class GenerateReplyOptions(TemperatureOptions, PrecisionOptions):
    """How a model writes."""

    reply_tokens: int = 512
    """Most tokens of a reply."""
    reply_batch: int = 8
    """Replies that a local model writes at once; of prompts shorter than the longest, more in the same memory."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(1, "reply_tokens", "reply_batch")

    def writer_arguments(self, device: Device, threads: int) -> dict:
        """Return arguments of `sciqa.generate.local_writer.LocalWriter` for a device and a number of CPU threads."""
        return {
            "model": self.model,
            "precision": self.precision,
            "device": device,
            "threads": threads,
            "batch": self.reply_batch,
            "tokens": self.reply_tokens,
            "seed": self.seed,
            "draws": self.draws,
            "temperature": self.temperature,
        }

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; else each is the likeliest one, and a second reply would be the same."""
        return self.temperature is not None


@dataclass(kw_only=True)
class GenerateOptions(
    NearCopyOptions,
    ApiServerOptions,
    ModelEngineOptions,
    GenerateReplyOptions,
    AdapterOptions,
    PassagesOptions,
    IndexFolderOptions,
    RunOptions,
):
    """Options of the `generate` step."""

    kind: Kind = "questions"
    """`questions`: multiple-choice questions, a table that --exam and --train take; `instructions`: instruction, input
    and output."""
    name: str = ""
    """Name of the result, which is kept in OUTPUT/generated/NAME; by default the kind."""
    template: str | None = None
    """Jinja2 file of the prompt, with the variables title, section, text, choices and letters; by default the built-in
    one of the kind (docs/generating.md)."""
    licence: str = ""
    """Note on the licence of the passages and of what the model writes, kept with every row."""
    choices: int = 4
    """Options of each question."""
    distractors: str | None = None
    """Open questions, a file or folder with the columns prompt and answer (or instruction and output). No model writes
    then: each becomes a multiple-choice question, whose wrong options are what the passages of --index have nearest to
    its answer."""
    per_passage: int = 1
    """Replies per passage. Several are drawn, and one too if --temperature is given; else its tokens are the likeliest
    ones."""
    first_passages: int | None = None
    """Take only this many passages, the first of the table; by default all."""
    part_passages: int = 64
    """Passages per part, the unit of work and of resuming."""
    skip_filters: tuple[Filter, ...] = ()
    """Filters that are not applied."""
    checker: str | None = None
    """Model, or adapter of --model, that answers each question with its passage and without: one that it cannot answer
    with it, or can without, is rejected. With --engine openai a model of the server; by default there is no such
    check."""

    def __post_init__(self) -> None:
        """Fill in the name and check the values."""
        super().__post_init__()
        self.name = self.name or self.kind
        check_name_option(self.name)
        self.template = self.template and storage.absolute_path(self.template)
        self.checker = local_model_path(self.checker) if self.checker and self.engine != "openai" else self.checker
        self.at_least(1, "per_passage", "first_passages", "part_passages")
        if not 2 <= self.choices <= 26:
            raise InputError(f"--choices: {self.choices} given, 2 to 26 expected")
        if self.distractors:
            self.distractors = storage.absolute_path(self.distractors)
            asks = self.template or self.adapter or self.engine == "openai" or self.per_passage > 1
            if asks or self.kind != "questions" or self.first_passages:
                raise InputError(
                    "--distractors: asks no model and takes all questions; leave --kind, --template, --adapter, "
                    "--engine, --per-passage and --first-passages out"
                )
        if self.checker and self.kind != "questions":
            raise InputError(f"--checker: answers the options of questions, and --kind {self.kind} has none")
        self._check_engine()

    def _check_engine(self) -> None:
        """Raise `InputError` unless the other options go with the engine."""
        if self.engine == "vllm":
            raise InputError(
                "--engine vllm: not in this step; start `vllm serve MODEL`, and pass --engine openai and its address "
                "as --base-url"
            )
        self.check_address(self.engine)
        if self.adapter and self.engine == "openai":
            raise InputError("--adapter: not with --engine openai, whose server has a model of its own; leave it out")

    def writer_arguments(self, device: Device, threads: int) -> dict:
        """See `GenerateReplyOptions.writer_arguments`."""
        return super().writer_arguments(device, threads) | {"adapter": self.adapter}

    @property
    def draws(self) -> bool:
        """See `GenerateReplyOptions.draws`; several replies per passage are always drawn."""
        return self.per_passage > 1 or super().draws

    @property
    def folder(self) -> str:
        """Folder of the generated table."""
        return storage.join_paths(self.output, "generated", self.name)


@dataclass(kw_only=True)
class EvaluateTextOptions(EmbedOptions, GenerateReplyOptions, RunOptions):
    """Options of the `evaluate` step."""

    text: str = ""
    """Held-out instructions: a file or a folder of files, .jsonl, .json, .csv or .parquet, with the columns instruction
    and output, and optionally input and id; by default OUTPUT/generated/instructions."""
    tuned: str | None = None
    """What was made of --model, to compare with it: an adapter's folder (OUTPUT/trained/NAME), or a whole model."""

    def __post_init__(self) -> None:
        """Make local paths absolute."""
        super().__post_init__()
        given = storage.join_paths(self.output, "generated", "instructions")
        self.text = storage.absolute_path(self.text) if self.text else given
        self.tuned = self.tuned and local_model_path(self.tuned)
