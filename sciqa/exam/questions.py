"""Exams: CSV, JSONL or Parquet files of multiple-choice questions become the validated exam table."""

import csv
import io
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

import pyarrow as pa

from sciqa import storage
from sciqa.cluster import RunOptions
from sciqa.errors import InputError

#: What an exam table's Parquet metadata calls the hash of its rows.
EXAM_HASH = b"sciqa.exam"
SPLITS = ("train", "validation", "test")
#: Values of `is_question` as people write them.
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(kw_only=True)
class ExamOptions(RunOptions):
    """Which questions."""

    exam: str = "test"
    """The packaged exam's split `train`, `validation` or `test`, or a .csv, .jsonl or .parquet file."""
    shard_questions: int = 32
    """Questions in a shard, the unit of work and of resuming."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(1, "shard_questions")


@dataclass(frozen=True)
class Exam:
    """An exam on storage, as every step opens it.

    Attributes:
        path: the exam table.
        sha256: of its content, whatever its file's format, to know a run's questions again.
        questions: number of rows.
        shard_questions: rows of a shard, the unit of work and of resuming.
    """

    path: str
    sha256: str
    questions: int
    shard_questions: int

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


def open_exam(options: ExamOptions) -> Exam:
    """Validate the exam of the options and write its table to the run's folder, where it is not there yet.

    Raises:
        InputError: with file, row and column of what is wrong.
    """
    table = read_exam(options.exam)
    path = storage.join(options.output, "exam.parquet")
    exam = Exam(path, storage.rows_hash(table.to_pylist()), len(table), options.shard_questions)
    storage.check_writable(options.output)
    if not _is_stored(exam, table.column_names):
        marked = table.replace_schema_metadata({EXAM_HASH: exam.sha256})
        storage.write_table(path, marked, row_group_size=options.shard_questions)
    return exam


def _is_stored(exam: Exam, columns: list[str]) -> bool:
    """Whether the file of an exam's table holds it already, however that was written."""
    try:
        table = storage.open_parquet(exam.path).read()
    except (InputError, pa.ArrowException, OSError):
        return False
    return set(table.column_names) == set(columns) and storage.rows_hash(table.to_pylist()) == exam.sha256


def options_of(question: dict) -> dict[str, str]:
    """Return a question's options by letter, without the columns that it leaves empty."""
    return {letter: question[letter] for letter in string.ascii_uppercase if question.get(letter)}


def rotate_options(question: dict, by: int) -> dict:
    """Return a question whose options stand `by` places further on, the last ones first."""
    texts = list(options_of(question).values())
    moved = texts[-by:] + texts[:-by] if by else texts
    rotated = question | dict(zip(string.ascii_uppercase, moved, strict=False))
    if question.get("answer"):
        place = string.ascii_uppercase.index(question["answer"]) + by
        rotated["answer"] = string.ascii_uppercase[place % len(texts)]
    return rotated


def read_exam(exam: str) -> pa.Table:
    """Read and validate an exam.

    Columns `id`, `prompt` and options `A`, `B`, … (2 to 26, without a gap) are required; `answer` (a letter, or
    an index from 0), `is_question`, `context` and any others are optional. Every cell is text, except
    `is_question`, which is bool; a question may leave its last options empty.

    Args:
        exam: a packaged split, or a path that ends in .csv, .jsonl or .parquet.

    Raises:
        InputError: with file, row and column of what is wrong; the first question is row 1.
    """
    if exam in SPLITS:
        rows = _read_jsonl(exam, files("sciqa.exam").joinpath(f"data/{exam}.jsonl").read_bytes())
    else:
        readers = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}
        suffix = exam.rsplit(".", 1)[-1].lower()
        if suffix not in readers:
            raise InputError(f"{exam}: an exam is {', '.join(SPLITS)}, or a file ending in .csv, .jsonl, .parquet")
        rows = readers[suffix](exam, storage.read_bytes(exam))
    rows = list(rows)
    if not rows:
        raise InputError(f"{exam}: no questions")
    names = list(dict.fromkeys(name for row in rows for name in row))
    letters = _check_columns(exam, names)
    others = [name for name in names if name not in {"id", "prompt", "is_question", "context", "answer", *letters}]
    seen: dict[str, int] = {}
    questions = [_check_row(exam, number, row, letters, others, seen) for number, row in enumerate(rows, 1)]
    texts = ["id", "prompt", "context", *letters, "answer", *others]
    schema = pa.schema([("is_question", pa.bool_()), *((name, pa.string()) for name in texts)])
    return pa.Table.from_pylist(questions, schema=schema).select(["id", "prompt", "is_question", *texts[2:]])


def _check_columns(exam: str, names: list[str]) -> str:
    """Return the option letters, or raise `InputError` for a column that is missing."""
    present = set(string.ascii_uppercase) & set(names)
    letters = string.ascii_uppercase[: max(len(present), 2)]
    for name in ("id", "prompt", *letters):
        if name not in names:
            raise InputError(f"{exam}: no column {name!r}; an exam has id, prompt, A, B, …; found {', '.join(names)}")
    return letters


def _check_row(exam: str, number: int, row: dict, letters: str, others: list[str], seen: dict[str, int]) -> dict:
    """Return a row as the exam table has it, or raise `InputError` for what is wrong with it."""

    def fail(column: str, what: str) -> InputError:
        return InputError(f"{exam}, row {number}, column {column!r}: {what}")

    question = {name: _text(row.get(name)) for name in ("id", "prompt", "context", *letters, *others)}
    for column in ("id", "prompt"):
        if not question[column]:
            raise fail(column, "empty; every question needs one")
    if question["id"] in seen:
        raise fail("id", f"{question['id']!r} stands in row {seen[question['id']]} already; ids must differ")
    seen[question["id"]] = number
    given = [letter for letter in letters if question[letter]]
    if "".join(given) != letters[: len(given)] or len(given) < 2:
        gap = next(letter for letter in letters if not question[letter])
        raise fail(gap, "empty; a question has at least two options and no gap between them")
    question["answer"] = _answer(row.get("answer"), given, fail)
    is_question = _text(row.get("is_question"))
    if is_question is not None and is_question.lower() not in BOOLEANS:
        raise fail("is_question", f"{is_question!r} found, true or false expected")
    question["is_question"] = True if is_question is None else BOOLEANS[is_question.lower()]
    return question


def _answer(value: object, letters: list[str], fail: callable) -> str | None:
    """Return the letter that a cell (letter, or index from 0) means, None where it is empty."""
    text = _text(value)
    if text is None:
        return None
    if text.upper() in letters:
        return text.upper()
    if text.isdecimal() and int(text) < len(letters):
        return letters[int(text)]
    raise fail(
        "answer",
        f"{text!r} found, a letter from A to {letters[-1]} or an index from 0 to {len(letters) - 1} expected",
    )


def _text(value: object) -> str | None:
    """Return a cell as text, None where it is empty."""
    if value is None or value != value:  # NaN, as pandas writes an empty cell
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _decode(exam: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, byte = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise InputError(f"{exam}, line {line}, byte {byte}: not UTF-8; save the file as UTF-8") from error


def _read_csv(exam: str, data: bytes) -> Iterable[dict]:
    reader = csv.DictReader(io.StringIO(_decode(exam, data), newline=""), strict=True)
    if repeated := [name for name in reader.fieldnames or [] if reader.fieldnames.count(name) > 1]:
        raise InputError(f"{exam}: column {repeated[0]!r} stands twice in the header")
    rows = []
    try:
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                width = len(reader.fieldnames)
                found = sum(value is not None for value in row.values()) + len(row.get(None, [])) - (None in row)
                raise InputError(f"{exam}, row {number}: {found} cells, {width} expected; quote cells with commas")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{exam}, line {reader.line_num}: not CSV ({error})") from error
    return rows


def _read_jsonl(exam: str, data: bytes) -> Iterable[dict]:
    for number, line in enumerate(_decode(exam, data).splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{exam}, row {number}: not JSON ({error}); one question a line expected") from error
        if not isinstance(row, dict):
            raise InputError(f"{exam}, row {number}: an object expected, {line[:60]!r} found")
        yield row


def _read_parquet(exam: str, data: bytes) -> Iterable[dict]:
    return storage.open_parquet(exam).read().to_pylist()
