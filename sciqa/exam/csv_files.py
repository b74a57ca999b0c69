"""Read questions from CSV and TSV files, as spreadsheets and people write them."""

import csv
import io
import re
from collections.abc import Iterator

from sciqa.core.errors import InputError
from sciqa.exam.row import UNSEEN, Row, clean_row_names

#: Columns of MMLU's CSV files, which have no header.
HEADERLESS = ("question", "A", "B", "C", "D", "answer")
#: Longest cell of a CSV file, in characters; the csv module's own 131,072 is shorter than some articles.
LONGEST_CELL = 2**31 - 1


def read_csv(path: str, text: str, kind: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, without the empty rows that spreadsheets leave."""
    lines = _csv_lines(path, text, kind)
    if not lines:
        return
    line, header = lines[0]
    if all(_is_headerless(cells) for _, cells in lines) and any(" " in cells[0].strip() for _, cells in lines):
        header, body = list(HEADERLESS), lines
    else:
        body = lines[1:]
        header = _named(path, line, header, [cells for _, cells in body])
    named = iter(clean_row_names(path, filter(None, header)))
    header, width = [name and next(named) for name in header], len(header)
    short = [at for at in range(width) if all(len(cells[at].strip()) == 1 for _, cells in body if at < len(cells))]
    for number, (line, cells) in enumerate(body, 1):
        given = zip(header, cells, strict=False)  # those beyond the header are empty, or refused
        row = Row(path, number, line, {name: cell for name, cell in given if name})
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            raise InputError(f"{row.place}: {len(cells)} cells, {width} expected; quote cells with separators in them")
        if swallowed := next((cell for cell in cells if _holds_rows(cell, width, short)), None):
            raise InputError(
                f"{row.place}: a cell that holds whole rows, {swallowed[:60]!r}; a quote before it is not closed, or "
                "not doubled inside its cell"
            )
        yield row


def _holds_rows(cell: str, width: int, short: list[int]) -> bool:
    """Whether a line of a multi-line cell, other than the last, is a row, with as many cells as the header.

    Prose has a space after a comma, and no single character where all rows have one (`short`: such columns).
    """
    lines = cell.split("\n")[:-1] if width >= 4 else []
    found = [next(csv.reader([line]), []) for line in lines if line.count(",") + 1 >= width]
    return any(
        len(cells) == width
        and not any(each[:1].isspace() for each in cells[1:])
        and (not short or any(len(cells[at].strip()) == 1 for at in short))
        for cells in found
    )


def _csv_lines(path: str, text: str, kind: str) -> list[tuple[int, list[str]]]:
    """Return the non-empty rows of a CSV file, including the header, each with its line number."""
    separator, skipped = _separator(text, kind)
    first = io.StringIO(text[: 1 << 20], newline="").readline()
    # Where lines end with a line feed, a carriage return outside quotes is text that a program forgot to quote.
    stream = io.StringIO(text, newline="" if first.endswith("\r") else "\n")
    for _ in range(skipped):
        stream.readline()
    reader = csv.reader(stream, delimiter=separator, strict=True)
    lines: list[tuple[int, list[str]]] = []
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        while True:
            line = skipped + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return lines
            except csv.Error as error:
                said = str(error).partition(" - ")[0]
                raise InputError(
                    f"{path}, line {line}: not CSV ({said}); quote cells with separators, ends of lines or quotes in "
                    "them, and double those quotes"
                ) from error
            if any(map(str.strip, cells)):
                lines.append((line, cells))
    finally:
        csv.field_size_limit(before)


def _separator(text: str, kind: str) -> tuple[str, int]:
    """Return the cell separator of a file, and the number of lines before its header that declare it (`sep=;`)."""
    text = text[: 1 << 20]
    first = io.StringIO(text, newline="").readline()
    if said := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        return said[1], 1
    first = next((line for line in io.StringIO(text, newline="") if line.strip(" ,;\t|\r\n")), "")
    if kind == "tsv" and "\t" in first:
        return "\t", 0
    widths = {each: len(next(csv.reader([first.rstrip("\r\n")], delimiter=each), [])) for each in ",;\t|"}
    return ("," if widths[","] >= 3 else max(widths, key=lambda each: widths[each])), 0


def _is_headerless(cells: list[str]) -> bool:
    return len(cells) == len(HEADERLESS) and cells[-1].strip() in ("A", "B", "C", "D")


def _named(path: str, line: int, header: list[str], body: list[list[str]]) -> list[str]:
    """Return a header in which unnamed columns are left out (named ""): empty ones, or a first one of numbers."""
    for at, name in enumerate(header):
        if name.strip().strip(UNSEEN):
            continue
        cells = [cells[at].strip() for cells in body if at < len(cells)]
        if any(cells) and not (at == 0 and all(cell.isdecimal() for cell in cells)):
            raise InputError(f"{path}, line {line}: column {at + 1} has no name, but cells; name it, or leave it out")
        header[at] = ""
    while header and not header[-1]:
        header.pop()
    return header
