"""The exam of a run: the options that select its questions, and the table on storage that every step opens."""

import string
from dataclasses import dataclass, field
from functools import cache

import pyarrow as pa

from sciqa.core import storage, tables
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.options import Options, WriteOptions
from sciqa.exam.answer_keys import AnswersFrom
from sciqa.exam.columns import parse_columns
from sciqa.exam.files import SPLITS
from sciqa.exam.read_exam import ContextFrom, ReadExam, read_exam, read_exam_questions

__all__ = ["SPLITS", "Exam", "ExamOptions", "open_exam", "options_of", "read_exam", "rotate_options"]

#: Key of the rows' hash in an exam table's Parquet metadata.
EXAM_HASH = b"sciqa.exam"
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
class QuestionOptions(QuestionFileOptions, WriteOptions):
    """How questions are read, and where their table is written."""

    context: ContextFrom = "both"
    """Texts that a model reads with a question: the exam's own column `context` (`given`, which needs no corpus and no
    index), the passages that are found (`found`), or both."""

    def read(self, exam: str) -> ReadExam:
        """Return the questions of an exam, read with these options, and print the notes about them.

        Raises:
            InputError: names file, line, row and column of the problem.
        """
        questions = read_exam_questions(exam, self.columns, self.answers_from, self.context)
        for note in questions.notes:
            _say(note)
        return questions


@cache
def _say(note: str) -> None:
    """Print a note once per process, however many steps read the exam."""
    console.print(note, markup=False, soft_wrap=True)


@dataclass(kw_only=True)
class ExamOptions(QuestionOptions):
    """Options that select the questions of a run."""

    exam: str | None = None
    """Packaged splits (`train`, `validation`, `test`, `direct-train`, `direct-validation`, `direct-test`; several as in
    train+direct-train), or a file of questions: .csv, .tsv, .json, .jsonl or .parquet, compressed or not, a folder of
    its shards, or a pattern such as test-*.parquet; by default the run's own exam, OUTPUT/exam.parquet, or `test` in a
    new run."""
    shard_questions: int = SHARD_QUESTIONS
    """Questions per shard, the unit of work and of resuming."""

    def __post_init__(self) -> None:
        """Check `shard_questions`."""
        super().__post_init__()
        self.at_least(1, "shard_questions")

    def exam_name(self, file: str = "exam.parquet") -> str:
        """Return the exam that is asked for; by default the run's own file in the output folder, else `test`."""
        path = storage.join(self.output, file)
        return self.exam or (path if storage.exists(path) else "test")


@dataclass(frozen=True)
class Exam:
    """An exam table on storage, which every step opens.

    Attributes:
        path: path of the exam table.
        sha256: hash of its rows, the same for any file format, by which a run recognises its questions.
        questions: number of rows.
        shard_questions: rows per shard, the unit of work and of resuming.
        name: name that the user gave.
        columns: columns of the table.
        answers: number of questions with a known answer.
        sample: its first question, on which steps try templates.
    """

    path: str
    sha256: str
    questions: int
    shard_questions: int
    name: str
    columns: tuple[str, ...]
    answers: int
    sample: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.questions // self.shard_questions)

    def first(self, number: int) -> int:
        """Return the number of the first question of a shard, from 0."""
        return number * self.shard_questions

    def read_shard(self, number: int) -> list[dict]:
        """Return the questions of one shard.

        Raises:
            InputError: another exam has been written over this one.
        """
        about = storage.open_parquet(self.path).schema_arrow.metadata or {}
        if about.get(EXAM_HASH, self.sha256.encode()) != self.sha256.encode():
            raise InputError(f"{self.path}: replaced by another exam while this run was reading it; run it again")
        return storage.read_rows(self.path, self.first(number), self.first(number + 1))

    def read_ids(self) -> list[str]:
        """Return the ids of all questions."""
        return storage.read_table(self.path, ["id"])["id"].to_pylist()


def open_exam(options: ExamOptions, write: bool = True, file: str = "exam.parquet") -> Exam:
    """Validate the exam of the options, which by default is the run's own; see `open_questions`.

    Args:
        options: options that name the exam and the output folder.
        write: write a missing table to that folder; steps do so after all other checks.
        file: file name of the table.
    """
    path = storage.join(options.output, file)
    return open_questions(options, options.exam_name(file), path, options.shard_questions, write)


def open_questions(
    options: QuestionOptions, name: str, path: str, shard_questions: int = SHARD_QUESTIONS, write: bool = True
) -> Exam:
    """Validate an exam, and return its table on storage.

    Args:
        options: how its questions are read, and whether another exam's table is replaced.
        name: packaged splits, or a file of questions; the table itself, if it is the run's own exam.
        path: path of the table.
        shard_questions: rows per shard.
        write: write a missing table.

    Raises:
        InputError: names file, row and column of the problem; or the table is that of another exam.
    """
    table = _read_own(path, options.context) if name == path else options.read(name).table
    columns = tuple(table.column_names)
    answers = len(table) - table["answer"].null_count
    rows = table.to_pylist()
    exam = Exam(path, tables.rows_hash(rows), len(table), shard_questions, name, columns, answers, rows[0])
    if (stored := _stored(path)) != (exam.sha256, set(columns)):
        if stored and stored[0] != exam.sha256 and not options.overwrite:
            raise InputError(
                f"{path}: the run's exam is another exam than {name} as it is read here; leave --exam and --context "
                "out to take the run's own, pass another --output, or --overwrite to replace it"
            )
        if write:
            marked = table.replace_schema_metadata({EXAM_HASH: exam.sha256})
            storage.write_table(path, marked, row_group_size=shard_questions)
    return exam


def _read_own(path: str, context: ContextFrom) -> pa.Table:
    """Return the exam in a run's folder: unchanged if a step wrote it, else read like any file of questions."""
    table = storage.open_parquet(path).read()
    marked = (table.schema.metadata or {}).get(EXAM_HASH)
    if marked != tables.rows_hash(table.to_pylist()).encode() or context == "given":
        return read_exam_questions(path, context=context).table
    if context == "found":
        number = table.column_names.index("context")
        table = table.set_column(number, "context", pa.nulls(len(table), pa.string()))
    return table.replace_schema_metadata(None)


def _stored(path: str) -> tuple[str, set[str]] | None:
    """Return the hash of the rows in an exam table, and its columns; None if there is no readable table."""
    try:
        table = storage.open_parquet(path).read()
    except (InputError, pa.ArrowException, OSError):
        return None
    return tables.rows_hash(table.to_pylist()), set(table.column_names)


def options_of(question: dict) -> dict[str, str]:
    """Return a question's options by letter, without empty ones."""
    return {letter: question[letter] for letter in string.ascii_uppercase if question.get(letter)}


def rotate_options(question: dict, by: int) -> dict:
    """Return a question with its options moved on by `by` places; those past the end move to the front."""
    texts = list(options_of(question).values())
    moved = texts[-by:] + texts[:-by] if by else texts
    rotated = question | dict(zip(string.ascii_uppercase, moved, strict=False))
    if question.get("answer"):
        place = string.ascii_uppercase.index(question["answer"]) + by
        rotated["answer"] = string.ascii_uppercase[place % len(texts)]
    return rotated
