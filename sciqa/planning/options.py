"""Options of a plan."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sciqa.core.errors import InputError
from sciqa.planning.hardware import ACCELERATORS

if TYPE_CHECKING:
    pass
from dataclasses import fields
from typing import TYPE_CHECKING

from sciqa.core.hub import local_path
from sciqa.exam.keys import AnswersFrom
from sciqa.models.format import Method
from sciqa.planning.volume import (
    VolumeOptions,
)
from sciqa.training.options import FinetuneOptions

if TYPE_CHECKING:
    pass

#: Tokens that `predict` computes at once, and that an evaluation does.
TOKENS_PER_BATCH = 2048
Stage = Literal["corpus", "index", "finetune", "predict"]


@dataclass(kw_only=True)
class PlanOptions(VolumeOptions):
    """What is planned; options that a step has too mean the same as there."""

    stages: tuple[Stage, ...] = ("corpus", "index", "finetune", "predict")
    """Steps that must find room."""
    exam: str = "test"
    """Questions to answer: a split of the packaged exam, or files as `sciqa exam --exam` takes them."""
    train: str = "train"
    """Questions to train on."""
    validation: str = "validation"
    """Questions that choose the best step."""
    columns: tuple[str, ...] = ()
    """Where the parts of a question stand in those files, if their names do not tell."""
    answers_from: AnswersFrom | None = None
    """What answers are there, where that cannot be told."""
    context_passages: int = 1
    """Passages in the text that the reader gets."""
    model: str = "SmolLM2-135M-Instruct"
    """Model: a packaged one, a local folder (config.json is enough), a .gguf file or a hub id, of which only the
    configuration is fetched."""
    method: Method = "lora"
    """`qlora` is LoRA over a base in 4 bits, which then answers in 4 bits too; `full` trains all weights."""
    peft: str = "{}"
    """Fields of peft's LoraConfig (or PromptTuningConfig), as in '{r: 16}'."""
    max_length: int | None = None
    """Most tokens of a question; its context is cut to fit. By default the model's own limit."""
    epochs: float = 2.0
    """Times that every training question is seen."""
    eval_every: int | None = None
    """Steps between evaluations; by default ten of them over the run."""
    batch_size: int = 16
    """Questions in an optimizer step, over all workers."""
    micro_batch: int = 4
    """Questions that a worker computes at once."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    offload: bool = False
    """Keep what ZeRO shards in the memory of the CPU."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    num_workers: int = 1
    """Model workers of each stage, each with a GPU."""
    cluster: str | None = None
    """Ray cluster file whose node types must have room for the stages."""
    accelerator: tuple[str, ...] = ()
    """GPUs to tell the hours of, such as A10G H100; by default those of the cluster file, or all that are known."""
    price: tuple[float, ...] = ()
    """Price of an hour of one GPU: one for all, or one for each --accelerator, in their order."""
    utilisation: float = 0.3
    """Share of a GPU's published operations a second that a stage reaches; large models reach 0.3 to 0.5."""

    def __post_init__(self) -> None:
        """Check the numbers and names."""
        super().__post_init__()
        self.model = local_path(self.model)
        self.training()
        if self.context_passages < 1:
            raise InputError(f"--context-passages: {self.context_passages} given, at least 1 expected")
        if not 0 < self.utilisation <= 1:
            raise InputError(f"--utilisation: {self.utilisation} given, more than 0 and at most 1 expected")
        if unknown := [name for name in self.accelerator if name not in ACCELERATORS]:
            raise InputError(f"--accelerator: {unknown[0]!r} given, one of {', '.join(ACCELERATORS)} expected")
        if len(self.price) not in (0, 1, len(self.accelerator)):
            raise InputError(f"--price: {len(self.price)} given, one, or one for each --accelerator expected")
        if self.batch_size % (self.micro_batch * self.num_workers):
            raise InputError(
                f"--batch-size: {self.batch_size} given, a multiple of --micro-batch ({self.micro_batch}) times "
                f"--num-workers ({self.num_workers}) expected"
            )

    def training(self) -> FinetuneOptions:
        """Return them as the options of `finetune`, which checks them."""
        shared = {field.name for field in fields(FinetuneOptions)} & {field.name for field in fields(self)}
        return FinetuneOptions(**{name: getattr(self, name) for name in shared - {"accelerator"}})
