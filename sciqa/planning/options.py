"""Options of the `plan` step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sciqa.core.errors import InputError
from sciqa.planning.hardware import ACCELERATORS

if TYPE_CHECKING:
    pass
from dataclasses import fields
from typing import TYPE_CHECKING

from sciqa.core.model_files import local_path
from sciqa.exam.answer_keys import AnswersFrom
from sciqa.models.prompt_format import Method
from sciqa.planning.volume import (
    VolumeOptions,
)
from sciqa.training.options import FinetuneOptions

if TYPE_CHECKING:
    pass

#: Tokens per batch in `predict` and in evaluations.
TOKENS_PER_BATCH = 2048
Stage = Literal["corpus", "index", "finetune", "predict"]


@dataclass(kw_only=True)
class PlanOptions(VolumeOptions):
    """Options of the `plan` step; those shared with another step mean the same there."""

    stages: tuple[Stage, ...] = ("corpus", "index", "finetune", "predict")
    """Steps to plan for."""
    exam: str = "test"
    """Questions to answer: a split of the packaged exam, or files as `sciqa exam --exam` takes them."""
    train: str = "train"
    """Questions to train on."""
    validation: str = "validation"
    """Questions on which training selects its best step."""
    columns: tuple[str, ...] = ()
    """Columns of those files that hold the parts of a question, if their names are not recognised."""
    answers_from: AnswersFrom | None = None
    """Form of the answers in those files, where it is ambiguous."""
    context_passages: int = 1
    """Passages in a reader's context."""
    model: str = "SmolLM2-135M-Instruct"
    """Model: a packaged one, a local folder (config.json is enough), a .gguf file or a hub id (only the configuration
    is fetched)."""
    method: Method = "lora"
    """`qlora` is LoRA with the base in 4 bits, in training and in answering; `full` trains all weights."""
    peft: str = "{}"
    """Fields of peft's LoraConfig (or PromptTuningConfig), such as '{r: 16}'."""
    max_length: int | None = None
    """Most tokens of a question; its context is truncated to fit. By default the model's own limit."""
    epochs: float = 2.0
    """Passes over the training questions."""
    eval_every: int | None = None
    """Steps between evaluations; by default a tenth of all steps."""
    batch_size: int = 16
    """Questions per optimizer step, over all workers."""
    micro_batch: int = 4
    """Questions that a worker computes at once."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    offload: bool = False
    """Keep the state that ZeRO shards in CPU memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    num_workers: int = 1
    """Model workers of each stage, each with a GPU."""
    cluster: str | None = None
    """Ray cluster file whose node types must fit the stages."""
    accelerator: tuple[str, ...] = ()
    """GPUs to estimate hours for, such as A10G H100; by default those of the cluster file, else all known ones."""
    price: tuple[float, ...] = ()
    """Price of one GPU per hour: one for all, or one for each --accelerator, in the same order."""
    utilisation: float = 0.3
    """Share of a GPU's published operations per second that a stage reaches; large models reach 0.3 to 0.5."""

    def __post_init__(self) -> None:
        """Check the values."""
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
        """Return the training options as those of `finetune`, whose constructor checks them."""
        shared = {field.name for field in fields(FinetuneOptions)} & {field.name for field in fields(self)}
        return FinetuneOptions(**{name: getattr(self, name) for name in shared - {"accelerator"}})
