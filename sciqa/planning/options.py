"""Options of the `plan` step."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core.errors import InputError
from sciqa.core.options import defaults_of
from sciqa.corpus.options import ChunkingOptions, check_corpus_option
from sciqa.exam.options import QuestionFileOptions
from sciqa.planning.hardware import ACCELERATORS
from sciqa.retrieval.options import ContextSizeOptions, StoredVectorsOptions
from sciqa.training.options import TrainOptions

#: Tokens per batch in `predict` and in evaluations.
TOKENS_PER_BATCH = 2048
Stage = Literal["corpus", "index", "finetune", "predict"]


@dataclass(kw_only=True)
class VolumeOptions(StoredVectorsOptions, ChunkingOptions):
    """The corpus whose size is estimated."""

    corpus: tuple[str, ...] = ("demo",)
    """Articles: `demo`, files or folders; only a sample is read."""
    articles: int | None = None
    """Plan for this many articles of English Wikipedia instead; it has 6.9 million."""

    def __post_init__(self) -> None:
        """Make local paths absolute and check the number."""
        super().__post_init__()
        if self.articles is None:
            self.corpus = check_corpus_option(self.corpus, VolumeOptions.corpus)
        self.at_least(1, "articles")
        for name in ("passage_tokens", "passage_overlap"):
            if self.articles and (given := getattr(self, name)) != defaults_of(ChunkingOptions)[name]:
                raise InputError(
                    f"--{name.replace('_', '-')}: {given} given, and --articles, whose passages were measured with the "
                    "default; leave out one of them"
                )


@dataclass(kw_only=True)
class PlanOptions(TrainOptions, ContextSizeOptions, VolumeOptions, QuestionFileOptions):
    """Options of the `plan` step; nothing is started, and only the configuration of the model is read.

    Contexts are planned as by `--context both`: those of an exam's own, and the passages that are found.
    """

    stages: tuple[Stage, ...] = ("corpus", "index", "finetune", "predict")
    """Steps to plan for."""
    exam: str = "test"
    """Questions to answer: a split of the packaged exam, or files as `sciqa exam --exam` takes them."""
    num_workers: int = 1
    """Model workers of each stage, each with a GPU."""
    cluster: str | None = None
    """Ray cluster file whose node types must fit the stages."""
    gpus: tuple[str, ...] = ()
    """GPUs to estimate hours for, such as A10G H100; by default those of the cluster file, else all known ones."""
    price: tuple[float, ...] = ()
    """Price of one GPU per hour: one for all, or one for each of --gpus, in the same order."""
    utilisation: float = 0.3
    """Share of a GPU's published operations per second that a stage reaches; large models reach 0.3 to 0.5."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.at_least(1, "num_workers")
        if not 0 < self.utilisation <= 1:
            raise InputError(f"--utilisation: {self.utilisation} given, more than 0 and at most 1 expected")
        if unknown := [name for name in self.gpus if name not in ACCELERATORS]:
            raise InputError(f"--gpus: {unknown[0]!r} given, one of {', '.join(ACCELERATORS)} expected")
        if len(self.price) not in (0, 1, len(self.gpus)):
            raise InputError(f"--price: {len(self.price)} given, one, or one for each of --gpus expected")
        if unpriced := [price for price in self.price if price < 0]:
            raise InputError(f"--price: {unpriced[0]} given, a number from 0 expected")
        if self.batch_size % (self.micro_batch * self.num_workers):
            raise InputError(
                f"--batch-size: {self.batch_size} given, a multiple of --micro-batch ({self.micro_batch}) times "
                f"--num-workers ({self.num_workers}) expected"
            )
