"""Convert tables to lines "Row: column value; column value", so that each line is understandable on its own."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from sciqa.corpus.wikitext_lines import join_wikitext_cell_lines

#: Limits: columns and rows that a cell may span, and cells of a table that are laid out as a grid.
WIDEST, DEEPEST, MOST = 100, 1000, 100_000


@dataclass(eq=False)
class TableCell:
    """A table cell as written: its text on one line, and how many columns and rows it spans."""

    text: str
    header: bool = False
    columns: int = 1
    rows: int = 1


def read_table_cell(text: str, header: bool, attributes: Mapping[str, object]) -> TableCell:
    """Return a cell by its text and attributes; a `colspan` or `rowspan` that is not a number counts as 1."""
    sizes = [str(attributes.get(name) or "").strip(" \"'") for name in ("colspan", "rowspan")]
    spans = [max(1, int(size)) if size.isascii() and size.isdecimal() and len(size) < 6 else 1 for size in sizes]
    return TableCell(join_wikitext_cell_lines(text), header, *spans)


def table_lines(rows: Iterable[list[TableCell]]) -> list[str]:
    """Convert a table to lines of text.

    A header row names the columns of the rows below it, together with header rows directly above it. The first cell
    names the row. A cell that fills a row becomes a line of its own.
    """
    lines: list[str] = []
    columns: list[str] = []
    known: set[str] = set()
    waiting: list[list[TableCell]] = []  # header rows not yet followed by another row
    for row in _grid(rows):
        if _names_columns(row, bool(columns or waiting)):
            waiting.append(row)
            continue
        if waiting:
            columns, waiting = _merge(waiting), []
            known.update(columns)
        lines.append(_line(row, columns))
    # Header rows at the end name no columns; they become lines, unless they repeat earlier column names.
    lines += [_line(row, columns) for row in waiting if not all(cell.text in known for cell in row)]
    return [line for line in lines if line]


def _grid(rows: Iterable[list[TableCell]]) -> Iterator[list[TableCell]]:
    """Yield rows in which each cell is repeated in all positions that it spans."""
    above: dict[int, tuple[TableCell, int]] = {}  # by column: a cell of an earlier row, and how many more rows it spans
    count = 0
    for cells in rows:
        row: list[TableCell] = []
        below: dict[int, tuple[TableCell, int]] = {}
        rest = iter(cells if count < MOST else [])
        while True:
            if len(row) in above:
                cell, left = above.pop(len(row))
            elif following := next(rest, None):
                cell, left = following, min(following.rows, DEEPEST)
            elif above:
                cell, left = TableCell(""), 1
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
            yield row if count < MOST else cells  # a table that is too large keeps its texts, without a grid


def _names_columns(row: list[TableCell], follows: bool) -> bool:
    """Return whether a row names columns: it has several headers, without numbers unless it is the first row."""
    filled = [cell for cell in row if cell.text]
    if not filled or len(row) == 1 or all(cell is row[0] for cell in row):
        return False
    numbers = follows and any(cell.text.strip("+-−.,% ").replace(",", "").isdecimal() for cell in filled[1:])
    return all(cell.header for cell in filled) and not numbers


def _merge(rows: list[list[TableCell]]) -> list[str]:
    """Combine header rows into one name per column."""
    width = max(map(len, rows))
    names = [dict.fromkeys(row[column].text for row in rows if column < len(row)) for column in range(width)]
    return [" ".join(filter(None, column)) for column in names]


def _line(row: list[TableCell], columns: list[str]) -> str:
    """Convert a row to a line; a cell that spans several columns appears once, with all their names."""
    texts = []
    for _, group in groupby(enumerate(row), key=lambda place: id(place[1])):
        places = list(group)
        at, cell = places[0]
        if cell.text and at == 0:
            texts.append(cell.text)
        elif cell.text:
            names = dict.fromkeys(columns[column] for column, _ in places if column < len(columns))
            named = ", ".join(name for name in names if name and name != cell.text)
            texts.append(f"{named} {cell.text}".strip())
    if not row[0].text or len(texts) == 1:
        return "; ".join(texts)
    return f"{texts[0]}: {'; '.join(texts[1:])}"
