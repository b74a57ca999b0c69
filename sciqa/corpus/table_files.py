"""Read rows of tables (Parquet, JSONL, CSV, TSV) as articles; errors name the file, row and column."""

import csv
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from io import BufferedReader, TextIOWrapper

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.corpus.corpus_files import LARGEST, Source, find_corpus_file_encoding, kind_of_corpus_file, open_corpus_file

FIELDS = ("title", "section", "text", "url")
SURROGATE = re.compile("[\ud800-\udfff]")
DELIMITERS = {"csv": ",", "tsv": "\t"}
#: Bytes read at once when counting lines.
CHUNK = 1 << 18


def check_table_file_columns(path: str) -> None:
    """Raise `InputError` if a Parquet, CSV or TSV file lacks `title` or `text`, or has a column of an article twice."""
    if kind_of_corpus_file(path)[0] == "parquet":
        names = tables.open_parquet(path).schema_arrow.names
    else:
        with open_corpus_file(path) as file:
            names = next(_csv_rows(file, path), [])
    for column in ("title", "text"):
        if column not in names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(names) or 'none'}")
    if twice := _repeated_field(names):
        raise InputError(f"{path}: column {twice!r} stands twice; leave one of them out, or rename it")


def _repeated_field(names: list[str]) -> str | None:
    """Return the first field of an article that stands more than once among names, or None."""
    return next((field for field in FIELDS if names.count(field) > 1), None)


def check_table_file_rows(path: str, rows: Iterator[tuple[int, object]]) -> Iterator[list[dict]]:
    """Yield rows as articles; raise `InputError` with the position of the first invalid one."""
    for at, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{_place(path, at)}: an object with title and text expected, {row!r:.60} found")
        article = {field: "" if row.get(field) is None else row[field] for field in FIELDS}
        for field, value in article.items():
            if not isinstance(value, str):
                raise InputError(f"{_place(path, at)}, column {field!r}: text expected, {value!r:.60} found")
            if SURROGATE.search(value):
                raise InputError(f"{_place(path, at)}, column {field!r}: half a character (a lone surrogate) in it")
            if "\0" in value:
                raise InputError(f"{_place(path, at)}, column {field!r}: a NUL character in it, which no text has")
        for field in ("title", "text"):
            if field not in row:
                raise InputError(f"{_place(path, at)}: no column {field!r}; every article has a title and a text")
        yield [article]


def _place(path: str, at: int) -> str:
    """Return a row's position for messages; `at` is its number from 0, or its first byte in a file of JSON lines."""
    if kind_of_corpus_file(path)[0] in ("jsonl", "extracted"):
        with open_corpus_file(path) as file:
            at, rest = 0, at
            while rest > 0 and (data := file.read(min(rest, CHUNK))):
                at, rest = at + data.count(b"\n"), rest - len(data)
    return f"{path}, row {at + 1}"


def read_parquet_table_file(path: str, start: int, end: int | None) -> Iterator[tuple[int, dict]]:
    """Yield the rows in a range of row groups, with their numbers."""
    file = tables.open_parquet(path)
    columns = [name for name in file.schema_arrow.names if name in FIELDS]
    groups = range(start, file.num_row_groups if end is None else end)
    first = sum(file.metadata.row_group(number).num_rows for number in range(start))
    with storage.storage_errors(path, "read"):
        for batch in file.iter_batches(256, groups, columns):
            batch.validate(full=True)  # texts that are not UTF-8 would be a `UnicodeDecodeError`
            yield from enumerate(batch.to_pylist(), first)
            first += len(batch)


def read_jsonl_table_file(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, object]]:
    """Yield the lines that begin in a range of bytes, with the positions of their first bytes."""
    if start:
        filesystem, inner = storage.resolve_storage(path)
        with BufferedReader(filesystem.open_input_file(inner)) as file:
            file.seek(start - 1)
            yield from _lines(file, path, start - 1 + len(file.readline()), end)
    else:
        with open_corpus_file(path) as file:
            yield from _lines(file, path, 0, end)


def _lines(file: Source, path: str, at: int, end: int | None) -> Iterator[tuple[int, object]]:
    while (end is None or at < end) and (line := file.readline()):
        data = line if at else line.removeprefix(BOM_UTF8)
        if data.strip():
            yield at, _parse_json_line(path, at, data)
        at += len(line)


def read_csv_table_file(path: str) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a CSV or TSV file, with their numbers."""
    with open_corpus_file(path) as file:
        rows = _csv_rows(file, path)
        names = next(rows)
        for at, row in enumerate(rows):
            if len(row) != len(names):
                raise InputError(f"{path}, row {at + 1}: {len(names)} fields expected, {len(row)} found")
            yield at, dict(zip(names, row, strict=True))


def _csv_rows(file: Source, path: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV or TSV file, column names first; blank lines are skipped."""
    csv.field_size_limit(LARGEST)
    _, encoding = find_corpus_file_encoding(file.peek(4)[:4])
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding[:6]  # these codecs drop the byte order mark
    lines = TextIOWrapper(file, encoding, newline="")
    kind = kind_of_corpus_file(path)[0]
    number = 0
    try:
        for row in csv.reader(lines, delimiter=DELIMITERS[kind], strict=True):
            number += 1
            if row:
                yield row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, row {number}: not {error.encoding.upper()}; convert it to UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path}, row {number}: no row of a {kind.upper()} file ({error})") from error


def _fields_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; raise `ValueError` if a field of an article is repeated, since one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs) and (twice := _repeated_field([name for name, _ in pairs])):
        raise ValueError(f"{twice!r} stands twice in an object")
    return found


def _parse_json_line(path: str, at: int, line: bytes) -> object:
    try:
        return json.loads(line, object_pairs_hook=_fields_once)
    except UnicodeDecodeError as error:
        raise InputError(f"{_place(path, at)}, byte {error.start + 1}: not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{_place(path, at)}: not JSON ({error}); one article a line expected") from error
