"""Read the options of a question: from one cell, a column each, or columns of the right and of the wrong ones."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from sciqa.exam.column_cells import find_column_cell, structured_column_cell
from sciqa.exam.columns import MARKED, Columns
from sciqa.exam.row import LETTERS, Row, RowNumber

#: Fields that hold the text and the label of options.
TEXTS = ("text", "choices", "value", "content", "option", "atext")
LABELS = ("label", "labels", "key", "letter", "aid")
#: Fields of each option that mark the right one.
MARKS = ("correct", "is_correct", "isCorrect", "right", "is_right")
#: Prefix of the text of a lettered option: `(A)`, `A.`, `A)`, `A:`.
BEFORE = re.compile(r"\s*\(?([A-Z])\s*[.):]\s*(?=\S)", re.IGNORECASE)


class LetteredAnswerOptions(NamedTuple):
    """The options of a question.

    Attributes:
        texts: texts of the options, in order.
        labels: names by which an answer may refer to them; empty if only letters do.
        right: index of the option that is marked as right, if any.
        numbers: whether the file stores any option as a number, and not text.
        sorted: whether the file has the options in another order, which their labels tell.
        marked: text of the option that is marked as right beside a column of answers, if one is.
    """

    texts: list[str]
    labels: list[str] = []  # noqa: RUF012 (never changed)
    right: int | None = None
    numbers: bool = False
    sorted: bool = False
    marked: str | None = None


def is_number_answer_option(cell: object) -> bool:
    """Whether a file stores a cell as a number, and not text."""
    return type(cell) is not str and isinstance(cell, RowNumber | int | float | Decimal) and not isinstance(cell, bool)


def answer_option_text(cell: object) -> str | None:
    """Return a cell as text, without white space around it; None if it is empty.

    A number of JSON or CSV keeps its text from the file; a number of Parquet becomes the shortest text that means it.

    Raises:
        ValueError: the cell cannot become text; the message says why.
    """
    if type(cell) is str and cell.isascii() and "\0" not in cell:
        return cell.strip() or None  # fast path for nearly every cell
    if cell is None or cell != cell:  # NaN, as pandas writes an empty cell
        return None
    if isinstance(cell, list | dict | tuple):
        raise ValueError(f"{'fields' if isinstance(cell, dict) else 'a list'} found, text expected")
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError as error:
            raise ValueError("bytes that are not UTF-8 found, text expected") from error
    text = format(cell, "f") if isinstance(cell, Decimal) else str(cell)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair found, which is no character")
    if "\0" in text:
        raise ValueError("a NUL character found, which no text has")
    return text.strip() or None


def read_answer_options(row: Row, columns: Columns) -> LetteredAnswerOptions:
    """Return a question's options, or raise `InputError` if they are not valid."""
    if columns.correct:
        return _apart(row, columns.correct, columns)
    if len(columns.options) > 1:
        cells = [find_column_cell(row.cells, name) for name in columns.options]
        return _checked(row, cells, [], list(columns.options))
    path = columns.options[0]
    cell = structured_column_cell(find_column_cell(row.cells, path))
    labels: object = []
    marks: object = _field(cell, MARKS)
    if isinstance(cell, dict) and not path.startswith(MARKED) and _are_marks(cell):
        raise row.error(path, f"options as a list, or by letters, expected; {str(cell)[:60]} found")
    if isinstance(cell, dict) or (isinstance(cell, list) and cell and all(isinstance(each, dict) for each in cell)):
        cell, labels = _split(cell)
    elif isinstance(cell, str):
        cell = split_lettered_options(cell)
    elif path not in row.cells:  # labels are in a field beside that of the texts
        labels = _field(structured_column_cell(find_column_cell(row.cells, path.rpartition(".")[0])), LABELS) or []
    if not isinstance(cell, list):
        found = "nothing" if cell is None else repr(cell)[:60]
        raise row.error(path, f'a list of options expected, {found} found; as JSON it is such as ["tin", "zinc"]')
    if not isinstance(labels, list) or (labels and len(labels) != len(cell)):
        raise row.error(path, f"{len(cell)} options, but labels {str(labels)[:60]}")
    marks = labels if path.partition(".")[0] == MARKED else marks
    if isinstance(marks, list) and not columns.answer:
        return _marked(row, cell, marks, path)
    checked = _checked(row, cell, labels, [path] * len(cell))
    right = [text for text, mark in zip(cell, _binary(marks), strict=False) if mark == "1"]
    return checked._replace(marked=answer_option_text(right[0])) if len(right) == 1 else checked


def _are_marks(cell: dict) -> bool:
    """Whether an object's keys are the texts of options, and its values only marks or scores."""
    marks = [mark for mark in cell.values() if mark is not None]
    return all(isinstance(mark, bool) or is_number_answer_option(mark) for mark in marks) and any(
        len(str(name)) > 2 for name in cell
    )


def _field(cell: object, names: Sequence[str]) -> object:
    """Return the values of the first field present: one list for all options, or a field of each; else None."""
    if isinstance(cell, list):
        name = next((name for name in names if all(isinstance(e, dict) and name in e for e in cell)), None)
        return [each[name] for each in cell] if name else None
    return next((cell[name] for name in names if isinstance(cell, dict) and isinstance(cell.get(name), list)), None)


def _split(cell: dict | list) -> tuple[object, object]:
    """Return the texts and labels of `{text: […], label: […]}`, `[{text, label}, …]` or `{A: …, B: …}`."""
    texts = _field(cell, TEXTS)
    if texts is not None:
        return texts, _field(cell, LABELS) or []
    if isinstance(cell, list) or any(isinstance(each, list | dict) for each in cell.values()):
        return cell, []
    pairs = list(cell.items())
    while pairs and pairs[-1][1] is None:  # a Parquet file has all keys in all rows
        pairs.pop()
    return [text for _, text in pairs], [label for label, _ in pairs]


def split_lettered_options(text: str) -> list[str] | str:
    """Return the options of a text such as `A. Iron` and, on the next line, `B. Tin`; other texts are unchanged.

    A text whose letters have a gap (`A.`, `B.`, `D.`) is unchanged too; an option without text is an empty one.
    """
    letters = LETTERS if text.lstrip(" (")[:1].isupper() else LETTERS.lower()
    for between in (r"\n", r"[;|,]|\s\s"):
        found: list[re.Match] = []
        for letter in letters:
            before = rf"(?:{between})" if found else "^"
            after = found[-1].end() if found else 0
            if not (place := re.compile(rf"{before}\s*\(?{letter}\s?[.):]").search(text, after)):
                break
            found.append(place)
        if len(found) > 1:
            later = letters[len(found) + 1 :][:3]
            if later and re.search(rf"(?:{between})\s*\(?[{later}]\s?[.):]", text[found[-1].end() :]):
                return text
            ends = [*(place.start() for place in found[1:]), len(text)]
            return [text[place.end() : end] for place, end in zip(found, ends, strict=True)]
    return text


def _apart(row: Row, correct: str, columns: Columns) -> LetteredAnswerOptions:
    names = list(columns.incorrect)
    wrong = [find_column_cell(row.cells, name) for name in names]
    if len(names) == 1:
        wrong = _listed(row, names[0], wrong[0], columns.listed)
        names *= len(wrong)
    right = find_column_cell(row.cells, correct)
    return _checked(row, [right, *wrong], [], [correct, *names])._replace(right=0)


def _listed(row: Row, name: str, cell: object, listed: bool) -> list:
    """Return the wrong options of a cell: a list, or one option."""
    wrong = structured_column_cell(cell)
    if isinstance(wrong, list) and (wrong is cell or listed or all(type(each) is str for each in wrong)):
        return wrong
    if isinstance(cell, str) and cell.strip()[:1] + cell.strip()[-1:] == "[]":
        raise row.error(
            name,
            f"{cell[:60]!r} found, which is no list, or may be one option; a list has quotes and commas, such as "
            '["tin", "zinc"]',
        )
    return [cell]


def _marked(row: Row, cell: list, marks: list, path: str) -> LetteredAnswerOptions:
    """Return options of which one is marked as right: `{choices: […], labels: [1, 0, …]}`, or `{text: 1, …}`."""
    if marks and {str(each) for each in cell} <= {"0", "1"}:  # the keys are the texts
        cell, marks = marks, cell
    marks = _binary(marks)
    if marks.count("1") != 1 or set(marks) > {"0", "1"}:
        raise row.error(
            path, f"labels {', '.join(marks)[:60]} found; 1 for the right option and 0 for the others expected"
        )
    return _checked(row, cell, [], [path] * len(cell))._replace(right=marks.index("1"))


def _binary(marks: object) -> list[str]:
    """Return marks as texts, true as "1" and false as "0"; none for what is no list."""
    return [str(int(each) if isinstance(each, bool) else each) for each in marks] if isinstance(marks, list) else []


def _checked(row: Row, cells: list, labels: list, names: list[str]) -> LetteredAnswerOptions:
    """Return options after checking that no text is missing; empty columns at the end are dropped."""
    read = []
    for cell, name in zip(cells, names, strict=True):
        try:
            read.append(answer_option_text(cell))
        except ValueError as error:
            raise row.error(name, str(error)) from error
    several = len(set(names)) > 1
    while several and read and read[-1] is None:
        read.pop()
    texts = [text for text in read if text is not None]
    if len(texts) < max(2, len(read)):
        gap = read.index(None) if None in read else len(read)
        name = names[gap] if gap < len(names) else names[-1] if names else "options"
        where = "" if several else f" as option {gap + 1}"
        raise row.error(name, f"empty{where}; a question has at least two options and no gap between them")
    if len(texts) > len(LETTERS):
        raise row.error(names[0], f"{len(texts)} options found, at most {len(LETTERS)} can be read")
    ordered = _in_order(row, texts, [str(label).strip() for label in labels], names[0])
    return ordered._replace(numbers=any(map(is_number_answer_option, cells)))


def _in_order(row: Row, texts: list[str], labels: list[str], name: str) -> LetteredAnswerOptions:
    """Return options sorted by label, if the labels are the first letters in any order."""
    if not labels:
        return LetteredAnswerOptions(texts)
    if len(set(labels)) < len(labels):
        raise row.error(name, f"labels {', '.join(labels)[:60]} found; each must be another")
    order = list(range(len(texts)))
    if set(labels) == set(LETTERS[: len(texts)]):
        order = sorted(order, key=lambda at: labels[at])
    moved = order != sorted(order)
    return LetteredAnswerOptions([texts[at] for at in order], [labels[at] for at in order], sorted=moved)


def options_without_letters(options: list[LetteredAnswerOptions]) -> list[LetteredAnswerOptions]:
    """Return options without the letters before their texts, `(A)` or `A.`, if all options of an exam have them."""
    stripped = []
    for each in options:
        found = [BEFORE.match(text) for text in each.texts]
        if [match and match[1].upper() for match in found] != list(LETTERS[: len(found)]):
            return options
        texts = [text[match.end() :] for text, match in zip(each.texts, found, strict=True) if match]
        stripped.append(each._replace(texts=texts))
    return stripped


def answer_options_of(question: dict) -> dict[str, str]:
    """Return a question's options by letter, without empty ones."""
    return {letter: question[letter] for letter in LETTERS if question.get(letter)}


def rotate_answer_options(question: dict, by: int) -> dict:
    """Return a question with its options moved on by `by` places; those past the end move to the front."""
    texts = list(answer_options_of(question).values())
    moved = texts[-by:] + texts[:-by] if by else texts
    rotated = question | dict(zip(LETTERS, moved, strict=False))
    if question.get("answer"):
        place = LETTERS.index(question["answer"]) + by
        rotated["answer"] = LETTERS[place % len(texts)]
    return rotated
