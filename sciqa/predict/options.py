"""Options of reader models and of the `predict` step."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core import storage
from sciqa.core.adapter_files import adapter_hash
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.hashes import rows_hash
from sciqa.core.model_files import Family, find_model, model_files_name
from sciqa.core.options import RunOptions, check_name_option, defaults_of
from sciqa.core.packaged import PACKAGED
from sciqa.exam.exam_files import exam_file_splits
from sciqa.exam.finished_answers import finished_answers_path
from sciqa.exam.open_exam import read_exam
from sciqa.exam.options import ExamOptions
from sciqa.models.options import AdapterOptions, ModelEngineOptions, PrecisionOptions, TemplateOptions
from sciqa.models.prompt_format import Completion, Normalise, Prompt, check_prompt_format
from sciqa.models.prompt_template import template_style
from sciqa.predict.api_options import ApiOptions
from sciqa.predict.chain_options import ChainLengthOptions
from sciqa.retrieval.options import ContextsFolderOptions, EmbedOptions

ShotsBy = Literal["fixed", "similarity"]
Doubt = Literal["margin", "entropy"]
ReaderName = Literal["open-book", "closed-book", "retrieval", "overlap", "overlap-gold", "longest", "majority"]
#: Readers that read no context.
CONTEXTLESS = ("closed-book", "longest", "majority")


@dataclass(kw_only=True)
class ShotOptions(EmbedOptions):
    """Examples before each question, which the embedder finds or keeps apart from it."""

    shots: int = 0
    """Questions with their answers that stand before each question as examples."""
    shots_from: str = "train"
    """Where they are from: packaged splits or files, as for --exam; an example has the context that this gives it."""
    shots_by: ShotsBy = "fixed"
    """`fixed`: the same for all questions, drawn by --shots-seed; `similarity`: the nearest by the embedder, nearest
    last. Both are balanced over the letters of the answers, and never a copy or near copy of the question."""
    shots_seed: int = 0
    """Random seed of fixed examples."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        self.at_least(0, "shots")

    def read_shots_file(self) -> list[dict]:
        """Return the questions of `shots_from`."""
        return read_exam(self.shots_from).to_pylist()

    @property
    def reads_other_files(self) -> bool:
        """Whether examples are read from files of questions; see `ExamOptions.reads_other_files`."""
        return not exam_file_splits(self.shots_from)

    def read_shots(self) -> list[dict]:
        """Return the questions that examples are chosen from: those with answers, fixed ones in their order.

        Raises:
            InputError: a bad file, or fewer of them than `shots`.
        """
        if not self.shots:
            return []
        from sciqa.predict.shots import balanced_shots

        pool = [row for row in self.read_shots_file() if row["answer"]]
        if len(pool) < self.shots:
            raise InputError(f"--shots {self.shots}: {self.shots_from} has {len(pool)} questions with an answer")
        if self.shots_by == "similarity":
            return pool
        return [pool[number] for number in balanced_shots(pool, self.shots_seed)]

    def shots_identity(self) -> dict:
        """Return what the examples follow from, as inputs of a table; nothing without examples."""
        if not self.shots:
            return {}
        chosen = {"shots": self.shots, "shots_by": self.shots_by, "shots_from": rows_hash(self.read_shots())}
        backend = {"shots_backend": self.embed_backend} if self.shots_by == "similarity" else {}
        return chosen | backend | {"shots_embedder": [find_model(self.embedder).revision, self.prefix("query")]}

    def shots_arguments(self, device: Device, threads: int) -> dict | None:
        """Return the arguments of `sciqa.predict.shots.ShotChooser`, or None without examples."""
        if not self.shots:
            return None
        return {
            "pool": self.read_shots(),
            "count": self.shots,
            "similar": self.shots_by == "similarity",
            "revision": find_model(self.embedder).revision,
            "prefix": self.prefix("query"),
            "embed": self.embed_on(device, threads),
        }


def _read_shots(options: ExamOptions, path: str, contexts: bool) -> list[dict]:
    """Return the questions of a split or file that has the form of the exam, with the contexts that it gives or not."""
    rows = read_exam(path, options.columns, options.answers_from).to_pylist()
    return rows if contexts else [row | {"context": None} for row in rows]


@dataclass(kw_only=True)
class ReaderModelOptions(ShotOptions, TemplateOptions, AdapterOptions, PrecisionOptions):
    """The reader model, and how it scores options."""

    nf4: bool = False
    """Keep the linear layers of the model in 4 bits (NF4, double quantisation)."""
    prompt: Literal["auto", Prompt] = "auto"
    """`chat` uses the tokenizer's chat template; `auto` is as in training, else `plain`, and with --completion reasoned
    or for an answer in words `chat` where the tokenizer has a template."""
    completion: Literal["auto", Completion] = "auto"
    """Score an option by its text, its letter, or a yes to it; `reasoned`: the model writes its reasons first, and its
    letter is read from their end. `auto` is as the template says, else as trained, else `text`."""
    normalise: Literal["auto", Normalise] = "auto"
    """Divide an option's log-likelihood by its length in tokens or characters; `auto`: as trained, else by tokens."""
    rotations: int = 1
    """Average the probabilities over this many rotations of the options; only for prompts that list them (letters)."""
    tokens_per_batch: int = 2048
    """Tokens per batch of a worker, padding included."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.at_least(1, "tokens_per_batch", "rotations")

    def style(self) -> dict:
        """Return the fields of `PromptFormat` that the options set; the others are as in training.

        Raises:
            InputError: the template is missing, has an error, or is for another completion.
        """
        given = {name: getattr(self, name) for name in ("prompt", "completion", "normalise")}
        given = {name: value for name, value in given.items() if value != "auto"}
        return given | template_style(self.template, self.completion)

    def check_family(self, family: Family) -> None:
        """Raise `InputError` if an option of the prompt is given that has no effect on a model of this family."""
        unread = ("template", "shots", "prompt", "completion", "normalise") if family == "multiple-choice" else ()
        for name in unread:
            if getattr(self, name) not in (None, 0, "auto"):
                raise InputError(
                    f"--{name}: {self.model} is an encoder, which reads no prompt and scores rows by its head; "
                    "leave it out"
                )
        check_prompt_format(self.prompt, self.model, family)

    def reader_arguments(self, device: Device, threads: int) -> dict:
        """Return the arguments of `sciqa.predict.readers.ModelReader` for a device and a number of CPU threads."""
        return {
            "name": self.model,
            "revision": find_model(self.model).revision,
            "adapter": self.adapter,
            "adapter_revision": adapter_hash(self.adapter) if self.adapter else None,
            "precision": self.precision,
            "nf4": self.nf4,
            "style": self.style(),
            "shots": self.shots_arguments(device, threads),
            "tokens_per_batch": self.tokens_per_batch,
            "rotations": self.rotations,
            "threads": threads,
            "device": device,
        }


@dataclass(kw_only=True)
class PredictEngineOptions(ModelEngineOptions, ReaderModelOptions):
    """What runs the reader model: PyTorch, layer by layer or not, vLLM, or a server."""

    stream: bool = False
    """Load the model layer by layer, for causal models larger than memory; does not support adapters."""
    stream_questions: int = 1024
    """Questions per pass through a streamed model, in whole shards; each pass reads all weights once."""
    stream_memory: int = 1_000_000_000
    """Bytes of hidden states that a worker keeps in memory; larger ones go to a file in its TMPDIR."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.at_least(1, "stream_questions")
        self.at_least(0, "stream_memory")
        for name in ("adapter", "nf4", "stream"):
            if self.engine != "torch" and getattr(self, name):
                raise InputError(
                    f"--{name}: not with --engine {self.engine}, which takes a model as it is stored; leave it out "
                    "(`sciqa merge` makes one model of a base and its adapter)"
                )
        if self.stream and self.adapter:
            raise InputError("--stream: reads no adapters; make one model of it and its base by `sciqa merge` first")
        if self.stream and self.nf4:
            raise InputError(
                "--stream: computes with weights as they are stored; leave --nf4 out, or pass a model that "
                "bitsandbytes has stored in 4 bits"
            )


@dataclass(kw_only=True)
class PredictOptions(PredictEngineOptions, ApiOptions, ContextsFolderOptions, EmbedOptions, ExamOptions, RunOptions):
    """Options of the `predict` step."""

    reader: ReaderName = "open-book"
    """`open-book`: the model with the context; `closed-book`: without; `retrieval`: similarity to passages only.
    Shallow baselines: `overlap` ranks by the share of an option's words in the context, `overlap-gold` in the passages
    found of the gold article; `longest` by length; `majority` by how often a letter is right in this exam."""
    name: str = ""
    """Name of the answers table; by default the reader's name, followed by that of the adapter or of a model other
    than the packaged one."""
    cascade: str | None = None
    """Read only the questions that this reader (a name in OUTPUT/answers) is least certain of; keep its other
    answers."""
    cascade_share: float = 0.5
    """Share of the questions that a cascade reads."""
    cascade_by: Doubt = "margin"
    """Measure of certainty in a cascade: `margin` (ratio of the two largest probabilities) or `entropy`."""
    blend: tuple[str, ...] = ()
    """Combine the probabilities of these readers' answers (names in OUTPUT/answers) instead of reading; a single
    reader can be calibrated with --blend-fit."""
    blend_fit: str | None = None
    """Output folder of a run of the same readers on other questions with answers, on which to fit the weights."""

    def __post_init__(self) -> None:
        """Fill in the defaults and check the values."""
        super().__post_init__()
        self.check_engine(self.engine, self.completion, self.normalise)
        self.blend_fit = self.blend_fit and storage.absolute_path(self.blend_fit)
        own = self.adapter or self.model
        packaged = own in PACKAGED or not self.has_model
        default = self.reader if packaged else f"{self.reader}-{model_files_name(own)}"
        default = f"{self.cascade}-then-{default}" if self.cascade else default
        self.name = self.name or ("blend" if self.blend else default)
        check_name_option(self.name)
        if self.blend_fit and not self.blend:
            raise InputError("--blend-fit: fits the weights of --blend; name the readers there")
        if repeated := [name for at, name in enumerate(self.blend) if name in self.blend[:at]]:
            raise InputError(f"--blend: {repeated[0]!r} given twice; name each reader once")
        if self.cascade and self.blend:
            raise InputError("--cascade: what is read after it is not a --blend; pass one of the two")
        if self.cascade and self.engine == "vllm":
            raise InputError("--cascade: not with --engine vllm, which answers whole shards; leave one of them out")
        if self.context == "given" and self.reader in ("retrieval", "overlap-gold"):
            raise InputError(f"--reader {self.reader}: ranks by what is found, and --context given looks nothing up")
        if not 0 < self.cascade_share <= 1:
            raise InputError(f"--cascade-share: {self.cascade_share} given, more than 0 and at most 1 expected")
        if self.name in (*self.blend, self.cascade):
            raise InputError(
                f"--name: {self.name!r} is also what is read; its answers would be deleted; pass another --name"
            )

    def check_effects(self) -> None:
        """Raise `InputError` for an option that is given without the one that gives it an effect."""
        drawn = self.in_api or self.is_reasoned
        for needed, lacks, names in (
            ("--cascade", not self.cascade, ("cascade_share", "cascade_by")),
            ("--shots", self.reads_model and not self.shots, ("shots_from", "shots_by", "shots_seed")),
            ("--completion reasoned", self.reads_model and not drawn, ("samples", "temperature", "seed", "max_tokens")),
        ):
            if given := [name for name in names if lacks and getattr(self, name) != defaults_of(PredictOptions)[name]]:
                flag = f"--{given[0].replace('_', '-')}"
                raise InputError(f"{flag}: has no effect without {needed}; leave it out, or pass {needed} too")
        if self.normalise != "auto" and self.reads_model and self.style().get("completion") == "yes":
            raise InputError("--normalise: not with --completion yes, which scores one word alone; leave it out")

    def read_shots_file(self) -> list[dict]:
        """See `ShotOptions.read_shots_file`."""
        return _read_shots(self, self.shots_from, self.has_context)

    @property
    def folder(self) -> str:
        """Folder of the answers table."""
        return finished_answers_path(self.output, str(self.name))

    @property
    def streams(self) -> bool:
        """Whether a model is loaded layer by layer."""
        return self.stream and self.reads_model

    @property
    def in_vllm(self) -> bool:
        """Whether vLLM runs the model."""
        return self.engine == "vllm" and self.reads_model

    @property
    def in_api(self) -> bool:
        """Whether a server has the model."""
        return self.engine == "openai" and self.reads_model

    @property
    def is_reasoned(self) -> bool:
        """Whether the model writes its reasons before it answers."""
        return self.reads_model and self.style().get("completion") == "reasoned"

    @property
    def reads_model(self) -> bool:
        """Whether a language model reads the questions."""
        return self.has_model and not self.blend

    @property
    def has_model(self) -> bool:
        """Whether the reader is a language model."""
        return self.reader in ("open-book", "closed-book")

    @property
    def has_context(self) -> bool:
        """Whether the reader takes a context."""
        return self.reader not in CONTEXTLESS


@dataclass(kw_only=True)
class PromptOptions(ChainLengthOptions, ReaderModelOptions, ContextsFolderOptions, ExamOptions):
    """Options of the `prompt` step."""

    show: int = 3
    """Number of questions to print, the first of the exam."""
    closed_book: bool = False
    """Print prompts without contexts; with --context given, they have those of the exam, and no table is needed."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        self.at_least(1, "show")

    def read_shots_file(self) -> list[dict]:
        """See `ShotOptions.read_shots_file`."""
        return _read_shots(self, self.shots_from, not self.closed_book)
