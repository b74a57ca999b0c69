"""A question as its file has it: cells by column, and its place."""

from collections.abc import Iterable
from typing import NamedTuple

from sciqa.core.errors import InputError

#: White space that is not seen in a column's name.
UNSEEN = "\ufeff\u200b\u2060"


class Number(str):
    """A number of a JSON or Parquet file, as the text that stands there, to tell `1` from `"1"`."""

    __slots__ = ()


class Row(NamedTuple):
    """A question as its file has it.

    Attributes:
        path: of the file.
        number: of the question in it, from 1.
        line: of the file on which it begins, where that is a text file.
        cells: what stands there, by column.
    """

    path: str
    number: int
    line: int | None
    cells: dict[str, object]

    @property
    def place(self) -> str:
        """File, line and row in words; the line is left out where it is the row's number too."""
        line = f"line {self.line}, " if self.line not in (None, self.number) else ""
        return f"{self.path}, {line}row {self.number}"


def clean_names(path: str, names: Iterable[str]) -> list[str]:
    """Return columns' names without white space around them, or raise `InputError` where one stands twice."""
    cleaned = [str(name).strip().strip(UNSEEN).strip() for name in names]
    if len(set(cleaned)) < len(cleaned):
        twice = next(name for name in cleaned if cleaned.count(name) > 1)
        raise InputError(f"{path}: column {twice!r} stands twice; leave one of them out, or rename it")
    return cleaned
