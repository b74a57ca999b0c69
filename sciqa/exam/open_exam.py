"""The exam of a run: the options that select its questions, and the table on storage that every step opens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from sciqa.core import hashes, storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of, rotate_answer_options
from sciqa.exam.exam_files import SPLITS
from sciqa.exam.options import SHARD_QUESTIONS, ExamOptions, ExamQuestionOptions
from sciqa.exam.read_exam import ContextFrom, check_given_contexts, read_exam, read_exam_questions

__all__ = ["SPLITS", "Exam", "ExamOptions", "answer_options_of", "open_exam", "read_exam", "rotate_answer_options"]

#: Key of the rows' hash in an exam table's Parquet metadata.
EXAM_HASH = b"sciqa.exam"


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

    def questions_of(self, shards: Iterable[int]) -> int:
        """Return the number of questions in some shards."""
        return sum(min(self.first(number + 1), self.questions) - self.first(number) for number in shards)

    def read_shard(self, number: int) -> list[dict]:
        """Return the questions of one shard; see `shard_table`."""
        return self.shard_table(number).to_pylist()

    def shard_table(self, number: int) -> pa.Table:
        """Return the questions of one shard as a table; see `open_table`."""
        self.open_table()
        return tables.read_table_slice(self.path, self.first(number), self.first(number + 1))

    def read_ids(self) -> list[str]:
        """Return the ids of all questions; see `open_table`."""
        return self.open_table().read(["id"])["id"].to_pylist()

    def open_table(self) -> pq.ParquetFile:
        """Return the table's file, opened.

        Raises:
            InputError: another exam has been written over this one.
        """
        file = tables.open_parquet(self.path)
        about = file.schema_arrow.metadata or {}
        if about.get(EXAM_HASH, self.sha256.encode()) != self.sha256.encode():
            raise InputError(f"{self.path}: replaced by another exam while this run was reading it; run it again")
        return file


def open_exam(options: ExamOptions, write: bool = True, file: str = "exam.parquet") -> Exam:
    """Validate the exam of the options, which by default is the run's own; see `open_exam_table`.

    Args:
        options: options that name the exam and the output folder.
        write: write a missing table to that folder; steps do so after all other checks.
        file: file name of the table.

    Raises:
        InputError: as `open_exam_table` and `ExamOptions.exam_name`.
    """
    path = storage.join_paths(options.output, file)
    return open_exam_table(options, options.exam_name(file), path, options.shard_questions, write)


def open_exam_table(
    options: ExamQuestionOptions, name: str, path: str, shard_questions: int = SHARD_QUESTIONS, write: bool = True
) -> Exam:
    """Validate an exam, and return its table on storage.

    Args:
        options: how its questions are read, and whether another exam's table is replaced.
        name: packaged splits, or a file of questions; the table itself, if it is the run's own exam.
        path: path of the table.
        shard_questions: most rows per shard.
        write: write a missing table.

    Raises:
        InputError: names file, row and column of the problem; or the table is that of another exam.
    """
    table = _read_own(path, options.context) if name == path else options.read(name).table
    columns = tuple(table.column_names)
    answers = len(table) - table["answer"].null_count
    shards = math.ceil(len(table) / shard_questions)
    shard_questions = math.ceil(len(table) / shards)  # as equal as can be
    digest, (first,) = hashes.rows_hash(tables.table_rows(table)), table.slice(0, 1).to_pylist()
    exam = Exam(path, digest, len(table), shard_questions, name, columns, answers, first)
    if (stored := _stored(path, options.overwrite)) != (exam.sha256, set(columns)):
        if stored and stored[0] != exam.sha256 and not options.overwrite:
            raise InputError(
                f"{path}: the run's exam is another exam than {name} as it is read here; leave --exam and --context "
                "out to take the run's own, pass another --output, or --overwrite to replace it"
            )
        if write:
            marked = table.replace_schema_metadata({EXAM_HASH: exam.sha256})
            tables.write_table(path, marked, row_group_size=shard_questions)
    return exam


def _read_own(path: str, context: ContextFrom) -> pa.Table:
    """Return the exam in a run's folder: unchanged if a step wrote it, else read like any file of questions."""
    table = tables.open_parquet(path).read()
    marked = (table.schema.metadata or {}).get(EXAM_HASH)
    if marked != hashes.rows_hash(tables.table_rows(table)).encode():
        return read_exam_questions(path, context=context).table
    if context == "given":
        check_given_contexts(path, ("context",), table["context"].to_pylist())
    if context == "found":
        number = table.column_names.index("context")
        table = table.set_column(number, "context", pa.nulls(len(table), pa.string()))
    return table.replace_schema_metadata(None)


def _stored(path: str, overwrite: bool) -> tuple[str, set[str]] | None:
    """Return the hash of the rows in an exam table, and its columns; None if there is no table.

    A damaged table, which `overwrite` replaces, counts as that of another exam.
    """
    if not storage.path_exists(path):
        return None
    try:
        with storage.storage_errors(path, "read"):
            table = tables.open_parquet(path).read()
    except InputError as error:
        if not isinstance(error.__cause__, pa.ArrowInvalid):  # it may be readable later
            raise
        if not overwrite:
            raise InputError(f"{error}, or pass --overwrite to replace it") from error
        return "", set()
    return hashes.rows_hash(tables.table_rows(table)), set(table.column_names)
