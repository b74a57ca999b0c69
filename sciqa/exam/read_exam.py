"""Convert published exams of many shapes to the validated exam table."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from sciqa.core.errors import InputError
from sciqa.exam.answer_keys import AnswerKeyColumn, AnswersFrom
from sciqa.exam.answer_options import (
    LetteredAnswerOptions,
    answer_option_text,
    options_without_letters,
    read_answer_options,
)
from sciqa.exam.column_cells import find_column_cell
from sciqa.exam.columns import KEPT, Columns, parse_columns, recognise_columns, unwrap_columns
from sciqa.exam.exam_files import exam_file_splits, read_exam_files
from sciqa.exam.row import LETTERS, Row

#: Accepted values of `is_question`.
BOOLEANS = dict.fromkeys(("true", "1", "1.0", "yes"), True) | dict.fromkeys(("false", "0", "0.0", "no"), False)
#: Values of `--context`: the exam's own column, passages that are found, or both.
ContextFrom = Literal["both", "given", "found"]
#: Columns of the exam table that this program reads.
READ = ("id", "prompt", "is_question", "context", "answer", *LETTERS)


@dataclass(frozen=True)
class ReadExam:
    """An exam that was read, and how it was understood.

    Attributes:
        table: the exam table; see `read_exam`.
        columns: the columns of the file that were read.
        notes: messages for the user.
    """

    table: pa.Table
    columns: Columns
    notes: list[str]


def read_exam(exam: str, columns: Sequence[str] = (), answers_from: AnswersFrom | None = None) -> pa.Table:
    """Read and validate an exam.

    The table has `id`, `prompt`, `is_question`, `context`, options `A`, `B`, … (2 to 26, without a gap), `answer` (a
    letter) and all columns of the file that are not read as one of these. Every cell is text, except `is_question`,
    which is bool; a question may have fewer options than others. If the file keeps the right option apart from the
    wrong ones, a hash of the question's id alone decides their order.

    Args:
        exam: a packaged split, or a file, folder or pattern as in `sciqa.exam.exam_files.read_exam_files`.
        columns: columns of the parts of a question, such as `prompt=question`; others are recognised by name.
        answers_from: how answers are given, if this is ambiguous: numbers from 0 or 1, letters or options' texts.

    Raises:
        InputError: names file, line, row and column of the problem; the first question is row 1.
    """
    return read_exam_questions(exam, columns, answers_from).table


def read_exam_questions(
    exam: str,
    columns: Sequence[str] = (),
    answers_from: AnswersFrom | None = None,
    context: ContextFrom = "both",
) -> ReadExam:
    """Read an exam as `read_exam` does, and also return how the file was understood.

    With the context `given`, some question must have a context of its own; with `found`, such contexts are left out.
    """
    rows = unwrap_columns(read_exam_files(exam))
    found = recognise_columns(exam, rows, {} if exam_file_splits(exam) else parse_columns(columns))
    ids = _ids(rows, found)
    contexts = [_context(row, found) for row in rows]
    parts: dict[str, Sequence[object]] = {
        "id": ids,
        "prompt": ["\n".join(_needed(row, path) for path in found.prompt) for row in rows],
        "is_question": [_is_question(row, found) for row in rows],
        "context": [None] * len(rows) if context == "found" else contexts,
    }
    if context == "given":
        check_given_contexts(exam, found.context, contexts)
    lettered = [read_answer_options(row, found) for row in rows]
    options = options_without_letters(lettered) if len(found.options) == 1 else lettered
    places = _places(found, rows, options, answers_from)
    texts, places = _arranged(ids, options, places)
    width = max(len(found.options) if len(found.options) > 1 else 2, *map(len, texts))
    parts |= {
        letter: [each[at] if at < len(each) else None for each in texts] for at, letter in enumerate(LETTERS[:width])
    }
    parts["answer"] = [None if place is None else LETTERS[place] for place in places]
    parts |= _others(rows, found, set(parts))
    types = {"is_question": pa.bool_()}
    table = pa.table({name: pa.array(cells, types.get(name, pa.string())) for name, cells in parts.items()})
    notes = list(_notes(exam, found, table, texts, context))
    if options != lettered:
        notes.append(f"{exam}: the letters before its options are left out, as in {lettered[0].texts[0][:40]!r}")
    return ReadExam(table, found, notes)


def check_given_contexts(exam: str, columns: Sequence[str], contexts: Sequence[str | None]) -> None:
    """Raise `InputError` unless some question has a context of its own, which these columns of the exam hold."""
    if not any(contexts):
        names = " and ".join(map(repr, columns)) or "of that name"
        raise InputError(
            f"{exam}: --context given, but no question has one (column {names}); name it by --columns context=…, or "
            "leave --context out"
        )


def _text(row: Row, path: str) -> str | None:
    try:
        return answer_option_text(find_column_cell(row.cells, path))
    except ValueError as error:
        raise row.error(path, str(error)) from error


def _needed(row: Row, path: str) -> str:
    if (text := _text(row, path)) is None:
        raise row.error(path, "empty; every question needs one")
    return text


def _ids(rows: list[Row], columns: Columns) -> list[str]:
    """Return the ids of all questions; if the exam has none, the row numbers."""
    if not columns.id:
        return [str(number) for number in range(1, len(rows) + 1)]
    seen: dict[str, Row] = {}
    for row in rows:
        name = _needed(row, columns.id)
        if first := seen.get(name):
            where = f"row {first.number}" + (f" of {first.path}" if first.path != row.path else "")
            raise row.error(columns.id, f"{name!r} stands in {where} already; ids must differ")
        seen[name] = row
    return list(seen)


def _is_question(row: Row, columns: Columns) -> bool:
    path = columns.kept.get("is_question", "is_question")
    text = _text(row, path) or "true"
    if text.lower() not in BOOLEANS:
        raise row.error(path, f"{text!r} found, true or false expected")
    return BOOLEANS[text.lower()]


def _context(row: Row, columns: Columns) -> str | None:
    return "\n".join(filter(None, [_text(row, path) for path in columns.context])) or None


def _places(
    columns: Columns, rows: list[Row], options: list[LetteredAnswerOptions], meant: AnswersFrom | None
) -> list[int | None]:
    """Return the index of each question's right option; None for a question without an answer."""
    if not columns.answer:
        places = [each.right for each in options]
        for other in _also_answers(columns, rows, options):
            if all(each.text is None or each.place is not None for each in other.readings):  # no letters of this order
                other.check_agrees(places, columns.correct or columns.options[0])
        return places
    first, *others = [AnswerKeyColumn(name, rows, options, columns) for name in columns.answer]
    places = first.places(meant)
    for other in [*others, *_also_answers(columns, rows, options)]:
        other.check_agrees(places, first.name)
    for row, place, each in zip(rows, places, options, strict=True):
        if each.marked is not None and (place is None or each.texts[place] != each.marked):
            said = "nothing" if place is None else LETTERS[place]
            raise row.error(first.name, f"{said} found, but {columns.options[0]!r} marks {each.marked[:60]!r} as right")
    return places


def _also_answers(columns: Columns, rows: list[Row], options: list[LetteredAnswerOptions]) -> Iterator[AnswerKeyColumn]:
    """Yield unread columns whose names and cells look like answers."""
    for name in columns.also:
        with suppress(InputError):
            column = AnswerKeyColumn(name, rows, options, columns)
            if all(each.text is None or {each.letter, each.place} != {None} for each in column.readings):
                yield column


def _arranged(
    ids: list[str], options: list[LetteredAnswerOptions], places: list[int | None]
) -> tuple[list[list[str]], list[int | None]]:
    """Return options and right indices; if the right one is marked or apart, a hash of the id decides the order."""
    texts, right = [], []
    for name, each, place in zip(ids, options, places, strict=True):
        if each.right is None:
            texts.append(each.texts)
            right.append(place)
            continue
        order = sorted(range(len(each.texts)), key=lambda at: hashlib.sha256(f"{at} {name}".encode()).digest())
        texts.append([each.texts[at] for at in order])
        right.append(order.index(each.right))
    return texts, right


def _others(rows: list[Row], columns: Columns, taken: set[str]) -> dict[str, list[str | None]]:
    """Return the columns that are kept unchanged, lists and objects as JSON; none has a name of the table's own."""
    used = {path if path in row.cells else path.partition(".")[0] for row in rows[:1] for path in columns.used}
    used |= columns.used | taken | set("" if columns.own else LETTERS)
    names = dict.fromkeys(name for row in rows for name in row.cells if name not in used)
    sources = {name: name for name in names} | {new: old for new, old in columns.kept.items() if new != "is_question"}
    return {name: [_other(row, source) for row in rows] for name, source in sources.items()}


def _other(row: Row, path: str) -> str | None:
    cell = find_column_cell(row.cells, path)
    if isinstance(cell, list | dict):
        return json.dumps(cell, ensure_ascii=False, default=str)
    if isinstance(cell, bytes) and path not in KEPT:
        return cell.hex()
    return _text(row, path)


def _notes(exam: str, columns: Columns, table: pa.Table, texts: list[list[str]], context: str) -> Iterator[str]:
    """Yield messages for the user about an exam that was read."""
    if not columns.own:
        unread = [name for name in table.column_names if name not in READ and name not in KEPT]
        unread += [name for name in columns.also if name in READ]
        said = f"{exam}: read as {columns.said()}" + ("" if columns.id else "; ids are row numbers")
        yield said + (f"; not read: {', '.join(unread)}" if unread else "")
    missing = table["answer"].null_count
    if missing:
        said = f"{missing:,} of {len(table):,} questions have no answer" if missing < len(table) else "no answers"
        yield f"{exam}: {said}; they are ranked, not scored"
    if same := [name for name, each in zip(table["id"].to_pylist(), texts, strict=True) if len(set(each)) < len(each)]:
        yield f"{exam}: questions with options of the same text: {len(same):,}, the first is {same[0]!r}"
    if context == "given" and (without := table["context"].null_count):
        yield f"{exam}: {without:,} of {len(table):,} questions have no context of their own and are read without one"
