"""Options of the `audit` step."""

from dataclasses import dataclass

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.core.options import RunOptions
from sciqa.corpus.options import check_corpus_option
from sciqa.exam.exam_files import exam_file_splits
from sciqa.exam.options import ExamOptions, QuestionFileOptions
from sciqa.exam.question_key import NEAR_COPY
from sciqa.retrieval.options import EmbedOptions


@dataclass(kw_only=True)
class NearCopyOptions(EmbedOptions, QuestionFileOptions):
    """Other questions to compare questions with, and when they are near copies of each other."""

    against: tuple[str, ...] = ()
    """Other questions to compare with: splits of the packaged exam, files as --exam takes them, or folders of models
    that `sciqa finetune` made (OUTPUT/trained/NAME), whose training and validation questions are taken. By default,
    `audit` takes those of the trained models by which the run was answered, and `generate` none."""
    ngram: int = 8
    """Words of an n-gram. Brown et al. 2020 (GPT-3, appendix C) take 8 to 13, by the length of a test's examples."""
    similarity: float = NEAR_COPY
    """A question is near another one if their vectors (prompt with options) have this cosine or a larger one."""
    share: float = 0.8
    """It is also near others if they hold this share of its n-grams (prompt with right option). Touvron et al. 2023
    (Llama 2, appendix A.6) call a sample dirty from 80 % of its tokens on."""

    def __post_init__(self) -> None:
        """Make local paths absolute and check the numbers."""
        super().__post_init__()
        self.against = tuple(name if exam_file_splits(name) else storage.absolute_path(name) for name in self.against)
        self.at_least(2, "ngram")
        for name in ("similarity", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"--{name}: {getattr(self, name)} given, more than 0 and at most 1 expected")


@dataclass(kw_only=True)
class AuditOptions(NearCopyOptions, ExamOptions, RunOptions):
    """Options of the `audit` step; --columns and --answers-from also hold for the files of --against."""

    corpus: tuple[str, ...] | None = None
    """Corpus to look the words of the questions up in, as `sciqa corpus` takes it; by default the passages."""
    passages: str | None = None
    """Folder of the passages table; by default OUTPUT/passages, if it is there."""
    index: str | None = None
    """Folder of the index, whose passages are taken if there is no passages table; by default OUTPUT/index."""

    def __post_init__(self) -> None:
        """Make local paths absolute."""
        super().__post_init__()
        if self.corpus is not None:
            self.corpus = check_corpus_option(self.corpus)
            if self.passages or self.index:
                raise InputError("--corpus: questions are looked up in it alone; leave --passages and --index out")
        self.passages = self.passages and storage.absolute_path(self.passages)
        self.index = self.index and storage.absolute_path(self.index)

    @property
    def reads_other_files(self) -> bool:
        """See `ExamOptions.reads_other_files`."""
        return bool(self.against)

    @property
    def folder(self) -> str:
        """Folder of the audit table."""
        return storage.join_paths(self.output, "audit")
