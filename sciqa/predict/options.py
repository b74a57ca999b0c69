"""Options of models that read, and of answering."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core import storage
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.hub import (
    PACKAGED,
    local_path,
    short_name,
)
from sciqa.core.options import RunOptions, check_name
from sciqa.exam.questions import ExamOptions
from sciqa.models.format import Completion, Engine, Normalise, Precision, Prompt
from sciqa.retrieval.options import EmbedOptions

Doubt = Literal["margin", "entropy"]
ReaderName = Literal["open-book", "closed-book", "retrieval"]


@dataclass(kw_only=True)
class ModelOptions(RunOptions):
    """The model that reads."""

    model: str = "SmolLM2-135M-Instruct"
    """Model that reads: the packaged one, a local folder (a fine-tuned one too), a .gguf file or a hub id."""
    adapter: str | None = None
    """Adapter of that model, as `sciqa finetune` (OUTPUT/trained/NAME) or peft wrote it."""
    precision: Precision = "auto"
    """Type of the weights; `auto` is 16 bits where the hardware has them."""
    nf4: bool = False
    """Keep the linear layers of the model in 4 bits (NF4, double quantisation)."""
    prompt: Literal["auto", Prompt] = "auto"
    """`chat` is the tokenizer's chat template; `auto` is what the adapter was trained with, else `plain`."""
    completion: Literal["auto", Completion] = "auto"
    """Score an option's text, its letter, or a yes to it; `auto` is what the adapter was trained with, else text."""
    normalise: Literal["auto", Normalise] = "auto"
    """Divide an option's log-likelihood by its length in tokens or characters; `auto`: as trained, else by tokens."""
    rotations: int = 1
    """Orders of the options over which probabilities are averaged, where the prompt lists them (letters)."""
    tokens_per_batch: int = 2048
    """Tokens that a worker computes at once."""
    engine: Engine = "torch"
    """`vllm`: causal models in safetensors run in vLLM, as `ray.data.llm` starts it (`pip install 'sciqa[vllm]'`)."""
    stream: bool = False
    """Read the model layer by layer, for causal models larger than memory; without an adapter."""
    stream_questions: int = 1024
    """Questions that go through a streamed model together, in whole shards; each time all its weights are read."""
    stream_memory: int = 1_000_000_000
    """Bytes of hidden states that a worker keeps in memory; where they are more, they are in a file in its TMPDIR."""

    def __post_init__(self) -> None:
        """Make paths that are here absolute and check the numbers."""
        super().__post_init__()
        self.model = local_path(self.model)
        self.adapter = self.adapter and local_path(self.adapter)
        self.at_least(1, "tokens_per_batch", "rotations", "stream_questions")
        self.at_least(0, "stream_memory")
        for name in ("adapter", "nf4", "stream"):
            if self.engine == "vllm" and getattr(self, name):
                raise InputError(
                    f"--{name}: not with --engine vllm, which takes a model as it is stored; leave it out "
                    "(`sciqa merge` makes one model of a base and its adapter)"
                )
        if self.stream and self.adapter:
            raise InputError("--stream: reads no adapters; make one model of it and its base by `sciqa merge` first")
        if self.stream and self.nf4:
            raise InputError(
                "--stream: computes with weights as they are stored; leave --nf4 out, or pass a model that "
                "bitsandbytes has stored in 4 bits"
            )

    def reader_arguments(self, device: Device, threads: int) -> dict:
        """Return the arguments of `sciqa.predict.readers.ModelReader` for a device and a number of CPU threads."""
        given = {name: getattr(self, name) for name in ("prompt", "completion", "normalise")}
        return {
            "name": self.model,
            "adapter": self.adapter,
            "precision": self.precision,
            "nf4": self.nf4,
            "style": {name: value for name, value in given.items() if value != "auto"},
            "tokens_per_batch": self.tokens_per_batch,
            "rotations": self.rotations,
            "threads": threads,
            "device": device,
        }


@dataclass(kw_only=True)
class PredictOptions(ExamOptions, EmbedOptions, ModelOptions):
    """What answers the questions."""

    contexts: str | None = None
    """Folder of the contexts table; by default OUTPUT/contexts."""
    reader: ReaderName = "open-book"
    """`open-book`: the model with the context; `closed-book`: without; `retrieval`: similarity to passages only."""
    name: str | None = None
    """Answers are kept under this name; by default the reader's, with that of the adapter, or of the model unless
    it is the packaged one."""
    cascade: str | None = None
    """Read only what this reader (a name in OUTPUT/answers) is least certain of, and keep its others."""
    cascade_share: float = 0.5
    """Share of the questions that are read."""
    cascade_by: Doubt = "margin"
    """How certain it is: by `margin`, how much likelier its first option is than its second, or by `entropy`."""
    blend: tuple[str, ...] = ()
    """Instead of reading, pool the probabilities of these readers' answers (names in OUTPUT/answers); one is enough to
    calibrate it with --blend-fit."""
    blend_fit: str | None = None
    """Output folder of a run on other questions with answers: the weights that suit the same readers there best."""

    def __post_init__(self) -> None:
        """Fill the defaults and check the numbers."""
        super().__post_init__()
        self.fill_folder("contexts", "contexts")
        self.blend_fit = self.blend_fit and storage.absolute(self.blend_fit)
        own = self.adapter or self.model
        packaged = own in PACKAGED or self.reader == "retrieval"
        default = self.reader if packaged else f"{self.reader}-{short_name(own)}"
        default = f"{self.cascade}-then-{default}" if self.cascade else default
        self.name = self.name or ("blend" if self.blend else default)
        check_name(self.name)
        if self.blend_fit and not self.blend:
            raise InputError("--blend-fit: fits the weights of --blend; name the readers there")
        if self.cascade and self.blend:
            raise InputError("--cascade: what is read after it is not a --blend; pass one of the two")
        if self.cascade and self.engine == "vllm":
            raise InputError("--cascade: not with --engine vllm, which answers whole shards; leave one of them out")
        if self.context == "given" and self.reader == "retrieval":
            raise InputError("--reader retrieval: ranks by what is found, and --context given looks nothing up")
        if not 0 < self.cascade_share <= 1:
            raise InputError(f"--cascade-share: {self.cascade_share} given, more than 0 and at most 1 expected")

    @property
    def streams(self) -> bool:
        """Whether a model is read, layer by layer."""
        return self.stream and self._reads

    @property
    def in_vllm(self) -> bool:
        """Whether a model is read by vLLM."""
        return self.engine == "vllm" and self._reads

    @property
    def _reads(self) -> bool:
        return self.reader != "retrieval" and not self.blend
