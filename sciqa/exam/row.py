"""A question as read from a file: its cells by column, and its place."""

import string
from collections.abc import Iterable
from typing import NamedTuple

from sciqa.core.errors import InputError

#: Names of the options of a question, in order.
LETTERS = string.ascii_uppercase
#: Invisible characters that are removed around column names.
UNSEEN = "\ufeff\u200b\u2060"


class RowNumber(str):
    """A number parsed from JSON, kept as its text, to tell `1` from `"1"`."""

    __slots__ = ()


class Row(NamedTuple):
    """A question as read from a file.

    Attributes:
        path: path of the file.
        number: number of the question in the file, from 1.
        line: line on which it begins, in a text file; else None.
        cells: cells of the question, by column.
    """

    path: str
    number: int
    line: int | None
    cells: dict[str, object]

    @property
    def place(self) -> str:
        """File, line and row in words; the line is left out if it equals the row."""
        line = f"line {self.line}, " if self.line not in (None, self.number) else ""
        return f"{self.path}, {line}row {self.number}"

    def error(self, column: str, problem: str) -> InputError:
        """Return the error about a cell of this question."""
        return InputError(f"{self.place}, column {column!r}: {problem}")


def clean_row_names(path: str, names: Iterable[str]) -> list[str]:
    """Return column names without white space around them; raise `InputError` if a name is repeated."""
    cleaned = [str(name).strip().strip(UNSEEN).strip() for name in names]
    if len(set(cleaned)) < len(cleaned):
        twice = next(name for name in cleaned if cleaned.count(name) > 1)
        raise InputError(f"{path}: column {twice!r} stands twice; leave one of them out, or rename it")
    return cleaned
