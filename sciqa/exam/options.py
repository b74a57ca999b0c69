"""Options that select and understand the questions of a run."""

from dataclasses import dataclass, fields
from pathlib import Path

from sciqa.core import storage
from sciqa.core.console import print_once
from sciqa.core.errors import InputError
from sciqa.core.options import Options, WriteOptions
from sciqa.exam.answer_keys import AnswersFrom
from sciqa.exam.columns import parse_columns
from sciqa.exam.exam_files import exam_file_splits
from sciqa.exam.read_exam import ContextFrom, ReadExam, read_exam_questions

#: Default number of questions per shard.
SHARD_QUESTIONS = 32


@dataclass(kw_only=True)
class QuestionFileOptions(Options):
    """How files of questions are understood."""

    columns: tuple[str, ...] = ()
    """Columns of the parts of a question, if their names do not tell: prompt=question options=choices.text
    answer=answerKey; or correct=… (column of the right option) and incorrect=… (columns of the wrong options);
    context=…, id=…. A path leads into fields, a comma joins columns: prompt=premise,question. By default, context
    comes from the columns context, article, passage, support or text, and fact1."""
    answers_from: AnswersFrom | None = None
    """How answers are given, if this is ambiguous: numbers from 0 or 1, letters, or the texts of options."""

    def __post_init__(self) -> None:
        """Check the syntax of `columns`."""
        super().__post_init__()
        parse_columns(self.columns)


@dataclass(kw_only=True)
class ExamQuestionOptions(QuestionFileOptions, WriteOptions):
    """How questions are read, and where their table is written."""

    context: ContextFrom = "both"
    """Texts that a model reads with a question: the exam's own column `context` (`given`, which needs no corpus and no
    index), the passages that are found (`found`), or both."""

    def read(self, exam: str) -> ReadExam:
        """Return the questions of an exam, read with these options, and print the notes about them.

        Raises:
            InputError: names file, line, row and column of the problem.
        """
        given = [value for field in fields(self) if (value := getattr(self, field.name)) != field.default]
        is_given = any(exam == value or (isinstance(value, tuple) and exam in value) for value in given)
        if is_given and exam_file_splits(exam) and Path(exam).exists():
            print_once(f"{exam}: the packaged exam is read; pass ./{exam} for what has that name here")
        questions = read_exam_questions(exam, self.columns, self.answers_from, self.context)
        for note in questions.notes:
            print_once(note)
        return questions


@dataclass(kw_only=True)
class ExamOptions(ExamQuestionOptions):
    """Options that select the questions of a run."""

    exam: str | None = None
    """Packaged splits (`train`, `validation`, `test`, `direct-train`, `direct-validation`, `direct-test`; several as in
    train+direct-train), or a file of questions: .csv, .tsv, .json, .jsonl or .parquet, compressed or not, a folder of
    its shards, or a pattern such as test-*.parquet; by default the run's own exam, OUTPUT/exam.parquet, or `test` in a
    new run."""
    shard_questions: int = SHARD_QUESTIONS
    """Most questions per shard, the unit of work and of resuming; shards are as equal as can be."""

    def __post_init__(self) -> None:
        """Check `shard_questions`."""
        super().__post_init__()
        self.at_least(1, "shard_questions")

    @property
    def reads_other_files(self) -> bool:
        """Whether `columns` and `answers_from` are also for files of questions besides the exam."""
        return False

    def exam_name(self, file: str = "exam.parquet") -> str:
        """Return the exam that is asked for; by default the run's own file in the output folder, else `test`.

        Raises:
            InputError: an option says how a file of questions is read, and none is read.
        """
        path = storage.join_paths(self.output, file)
        name = self.exam or (path if storage.path_exists(path) else "test")
        if self.reads_other_files or not (name == path or exam_file_splits(name)):
            return name
        what = "the run's own exam is read already" if name == path else f"{name} is packaged"
        for flag, given in (("--columns", self.columns), ("--answers-from", self.answers_from)):
            if given:
                raise InputError(
                    f"{flag}: says how a file is read, and {what}; name the file by --exam, or leave it out"
                )
        return name
