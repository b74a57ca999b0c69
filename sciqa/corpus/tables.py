"""Tables as lines of text, "Row: column value; column value", so that each says by itself what its cells mean."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

#: Cells that one may stand in, across and down, and cells of a table that are read.
WIDEST, DEEPEST, MOST = 100, 1000, 100_000


@dataclass(eq=False)
class Cell:
    """A cell as it is written: its text on one line, and how many columns and rows it stands in."""

    text: str
    header: bool = False
    columns: int = 1
    rows: int = 1


def span(text: object) -> int:
    """Return the number that a `colspan` or `rowspan` says; 1 where it says none."""
    text = str(text or "").strip(" \"'")
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 6 else 1


def table_lines(rows: Iterable[list[Cell]]) -> list[str]:
    """Return a table's lines.

    A row of headers names the columns of the rows below it, together with a row of headers right above it. The first
    cell names the row. A cell that fills a row is a line.
    """
    lines: list[str] = []
    columns: list[str] = []
    known: set[str] = set()
    waiting: list[list[Cell]] = []  # rows of headers that no other row has followed yet
    for row in _grid(rows):
        if _names_columns(row, bool(columns or waiting)):
            waiting.append(row)
            continue
        if waiting:
            columns, waiting = _merge(waiting), []
            known.update(columns)
        lines.append(_line(row, columns))
    # Rows of headers at the end name nothing; unless they repeat those above, they are rows.
    lines += [_line(row, columns) for row in waiting if not all(cell.text in known for cell in row)]
    return [line for line in lines if line]


def _grid(rows: Iterable[list[Cell]]) -> Iterator[list[Cell]]:
    """Yield rows with every cell in all the places that it stands in."""
    above: dict[int, tuple[Cell, int]] = {}  # by column: a cell of an earlier row, and in how many more it stands
    count = 0
    for cells in rows:
        row: list[Cell] = []
        below: dict[int, tuple[Cell, int]] = {}
        rest = iter(cells if count < MOST else [])
        while True:
            if len(row) in above:
                cell, left = above.pop(len(row))
            elif cell := next(rest, None):
                left = min(cell.rows, DEEPEST)
            elif above:
                cell, left = Cell(""), 1
            else:
                break
            columns = min(cell.columns, WIDEST) if left == min(cell.rows, DEEPEST) else 1
            for _ in range(columns):
                above.pop(len(row), None)
                if left > 1:
                    below[len(row)] = (cell, left - 1)
                row.append(cell)
        above = below
        count += len(row)
        if cells:
            yield row if count < MOST else cells  # of a table too large to be laid out the texts stay


def _names_columns(row: list[Cell], follows: bool) -> bool:
    """Return whether a row names columns: several headers, none of them a number unless it is the first row."""
    filled = [cell for cell in row if cell.text]
    if not filled or len(row) == 1 or all(cell is row[0] for cell in row):
        return False
    numbers = follows and any(cell.text.strip("+-−.,% ").replace(",", "").isdecimal() for cell in filled[1:])
    return all(cell.header for cell in filled) and not numbers


def _merge(rows: list[list[Cell]]) -> list[str]:
    """Return the names of columns that rows of headers give together."""
    width = max(map(len, rows))
    names = [dict.fromkeys(row[column].text for row in rows if column < len(row)) for column in range(width)]
    return [" ".join(filter(None, column)) for column in names]


def _line(row: list[Cell], columns: list[str]) -> str:
    """Write a row on a line; a cell that stands in several columns once, with the names of all."""
    texts = []
    for _, group in groupby(enumerate(row), key=lambda place: id(place[1])):
        places = list(group)
        at, cell = places[0]
        if cell.text and at == 0:
            texts.append(cell.text)
        elif cell.text:
            names = dict.fromkeys(columns[column] for column, _ in places if column < len(columns))
            names = ", ".join(name for name in names if name and name != cell.text)
            texts.append(f"{names} {cell.text}".strip())
    if not row[0].text or len(texts) == 1:
        return "; ".join(texts)
    return f"{texts[0]}: {'; '.join(texts[1:])}"
