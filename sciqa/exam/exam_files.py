"""Read rows from files of questions: CSV, TSV, JSON, JSONL, Parquet and Arrow, compressed or not, one or several."""

import bz2
import fnmatch
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files

import pyarrow as pa
import pyarrow.parquet as pq

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.csv_files import read_csv
from sciqa.exam.row import UNSEEN, Row, RowNumber, clean_row_names

SPLITS = ("train", "validation", "test", "direct-train", "direct-validation", "direct-test")
KINDS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow")
PACKINGS = {
    "gz": gzip.decompress,
    "bz2": bz2.decompress,
    "xz": lzma.decompress,
    "zst": lambda data: pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(),
}
ENDINGS = tuple(f"{kind}{end}" for kind in KINDS for end in ("", *(f".{packing}" for packing in PACKINGS)))
#: Keys under which a JSON file keeps its list of questions.
LISTS = ("data", "questions", "examples", "items", "rows")
#: Keys of a text, beside that list, that all its questions are about.
SHARED = ("article", "passage", "context")
#: Files that `datasets` writes beside the shards of a saved table.
BESIDE = ("dataset_info.json", "state.json", "dataset_dict.json")
NEWLINE = b"\n"


def exam_file_splits(exam: str) -> list[str]:
    """Return the packaged splits that an exam names, several joined by `+`; none if it names something else."""
    names = exam.split("+")
    return names if set(names) <= set(SPLITS) else []


def read_exam_files(exam: str) -> list[Row]:
    """Return all questions of an exam, unchanged from its files.

    Args:
        exam: a packaged split, or several joined by `+`; a file of `KINDS`, compressed by `PACKINGS` or not; a folder
            of such files, the shards of one exam; or a pattern of file names with `*` in a folder. Local, or a URI that
            pyarrow's filesystems support.

    Raises:
        InputError: no such file, a file of another format than its name says, a folder of several exams or formats, or
            that of a table which a step has not finished.
    """
    if splits := exam_file_splits(exam):
        data = [(name, files("sciqa.exam").joinpath(f"data/{name}.jsonl").read_bytes()) for name in splits]
        return [row for name, each in data for row in _read_jsonl(name, _decode(name, each))]
    try:
        rows = [row for path in _find_files(exam) for row in _read_file(path)]
    except Exception as error:
        if isinstance(error, InputError) or "://" not in exam:
            raise
        raise InputError(f"{exam}: cannot be read ({type(error).__name__}: {error})") from error
    if not rows:
        raise InputError(f"{exam}: no questions")
    return rows


def _find_files(exam: str) -> list[str]:
    folder, _, name = exam.rpartition("/")
    if "*" in name:
        _check_finished(folder)
        before = storage.join_paths(folder or ".", "")
        names = [path.removeprefix(before) for path in _list_files(folder or ".")]
        found = [before + each for each in names if "/" not in each and fnmatch.fnmatch(each, name)]
        if not found:
            raise InputError(f"{exam}: no file of that folder has such a name and ends in .{', .'.join(KINDS)}")
        return _of_one_format(exam, found)
    if not _kind(exam):  # a folder, which may be a table
        _check_finished(exam)
        if not storage.path_exists(exam):
            raise InputError(
                f"{exam}: no such exam; it is {', '.join(SPLITS)}, or a file ending in .{', .'.join(KINDS)}"
            )
    found = _list_files(exam)
    if found == [exam] and not _kind(exam):
        raise InputError(f"{exam}: a file ending in .{', .'.join(KINDS)} expected (and .{', .'.join(PACKINGS)})")
    names = sorted({_without_shard(path[len(exam) :].lstrip("/")) for path in found})
    if len(names) > 1:
        raise InputError(
            f"{exam}: holds {len(names)} exams ({', '.join(names[:5])}{', …' if names[5:] else ''}); name one of its "
            "files, or several by a pattern such as test-*.parquet"
        )
    return _of_one_format(exam, found)


def _list_files(folder: str) -> list[str]:
    """Return the path itself if it is a file, else the files of questions in the folder, also with endings in capitals.

    Raises:
        InputError: there is no such folder, or no file in it ends as one of questions does.
    """
    endings = tuple(f".{ending}" for ending in ENDINGS)
    found = [path for path, _ in storage.stat_files(folder, missing_ok=True) if path.lower().endswith(endings)]
    found = found or storage.list_files(folder, *ENDINGS)  # of which there are none, and it says so
    return [path for path in found if path.rpartition("/")[2] not in BESIDE]


def _of_one_format(exam: str, found: list[str]) -> list[str]:
    """Return the files of an exam; raise `InputError` if they are of several formats."""
    formats = sorted({".".join(filter(None, _kind(path) or ())) for path in found})
    if len(formats) > 1:
        raise InputError(
            f"{exam}: holds files of {len(formats)} formats ({', '.join(formats)}), one expected, since the same "
            f"questions may stand in each; name one of its files, or several by a pattern such as *.{formats[0]}"
        )
    return found


def _check_finished(folder: str) -> None:
    """Raise `InputError` if a step of sciqa has begun a table there, and not finished it."""
    table = storage.absolute_path(folder)
    begun = storage.path_exists(tables.table_records_path(table, tables.INPUTS))
    if begun and not tables.is_finished_table(table):
        raise InputError(
            f"{folder}: not finished; run the command that writes it, as `sciqa generate`, to its end first"
        )


def _without_shard(name: str) -> str:
    """Return a file's name without its suffix and shard number."""
    stem = name[: -len(".".join(filter(None, kind))) - 1] if (kind := _kind(name)) else name
    return re.sub(r"[-_.]?(\d{4,}[^/]*|\d+)$", "", stem)


def _kind(path: str) -> tuple[str, str] | None:
    """Return the format and the compression of a file by its name; None for other names."""
    *_, last, end = ["", "", *path.rpartition("/")[2].lower().split(".")]
    if end in PACKINGS:
        return (last, end) if last in KINDS else None
    return (end, "") if end in KINDS else None


def _read_file(path: str) -> Iterable[Row]:
    kind, packing = _kind(path) or ("", "")
    if kind == "parquet" and not packing:
        return _read_parquet(path, tables.open_parquet(path))
    data = storage.read_bytes(path, compression=None)
    if packing:
        try:
            data = PACKINGS[packing](data)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise InputError(f"{path}: not a whole .{packing} file ({error}); write or fetch it again") from error
    if kind == "parquet":
        return _read_parquet(path, pa.BufferReader(data))
    if kind == "arrow":
        return _read_arrow(path, data)
    text = _decode(path, data)
    if kind in ("csv", "tsv"):
        return read_csv(path, text, kind)
    return (_read_json if kind == "json" else _read_jsonl)(path, text)


def _read_arrow(path: str, data: bytes) -> Iterator[Row]:
    with _whole_file(path, "Arrow"):
        opened = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
        table = opened(pa.BufferReader(data)).read_all()
        yield from _read_batches(path, table.schema.names, table.to_batches(1024))


def _decode(path: str, data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}, line 1, byte 1: UTF-16; save the file as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        raise InputError(f"{path}, {_line_and_byte(data, at)}: a NUL byte, which no text has; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig").lstrip(UNSEEN)
    except UnicodeDecodeError as error:
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise InputError(f"{path}, {_line_and_byte(data, at)}: not UTF-8; save the file as UTF-8") from error


def _line_and_byte(data: bytes, at: int) -> str:
    before = data[:at]
    return f"line {before.count(NEWLINE) + 1}, byte {at - before.rfind(NEWLINE)}"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; raise `ValueError` if a key is repeated, since one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found


_JSON = json.JSONDecoder(
    parse_int=RowNumber,
    parse_float=RowNumber,
    parse_constant=lambda name: None if name == "NaN" else RowNumber(name),  # NaN is an empty cell of pandas
    object_pairs_hook=_unique,
)


def parse_exam_file_json(text: str) -> object:
    """Parse a JSON text, with numbers as `Number`; raise `ValueError` if it is not JSON."""
    try:
        return _JSON.decode(text)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _read_json(path: str, text: str) -> Iterator[Row]:
    """Yield the questions of a JSON file: a list, an object with a list as one of `LISTS`, or one object a line."""
    try:
        value = parse_exam_file_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[:1] == "{":
            yield from _read_jsonl(path, text)
            return
        raise InputError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); a list of questions expected"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if isinstance(value, dict):
        value = _listed(value)
    if not isinstance(value, list):
        raise InputError(f"{path}: a list of questions, or an object with one as {', '.join(LISTS)}, expected")
    for number, cells in enumerate(value, 1):
        yield _row(path, number, None, cells)


def _listed(value: dict) -> list:
    """Return the questions of a JSON object; each gets the text that all share, as in RACE's own files."""
    name = next((name for name in LISTS if isinstance(value.get(name), list)), None)
    if name is None:
        return [value]
    questions, shared = value[name], {key: value[key] for key in SHARED if isinstance(value.get(key), str)}
    options, answers = value.get("options", ()), value.get("answers", ())
    if all(isinstance(each, list) and len(each) == len(questions) for each in (options, answers)):
        asked = zip(questions, options, answers, strict=True)
        questions = [{"question": prompt, "options": given, "answer": answer} for prompt, given, answer in asked]
    return [shared | cells if isinstance(cells, dict) else cells for cells in questions]


def _read_jsonl(path: str, text: str) -> Iterator[Row]:
    """Yield the questions of a JSONL file; only line feeds end lines, since texts may hold other line separators."""
    if text.lstrip()[:1] == "[":
        yield from _read_json(path, text)
        return
    number = 0
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        number += 1
        try:
            cells = parse_exam_file_json(content)
        except ValueError as error:
            place = Row(path, number, line, {}).place
            raise InputError(f"{place}: not JSON ({error}); one question a line expected") from error
        yield _row(path, number, line, cells)


def _row(path: str, number: int, line: int | None, cells: object) -> Row:
    row = Row(path, number, line, {})
    if not isinstance(cells, dict):
        raise InputError(f"{row.place}: an object expected, {str(cells)[:60]!r} found")
    if any(name != name.strip() or not name.isascii() for name in cells):
        cells = dict(zip(clean_row_names(row.place, cells), cells.values(), strict=True))
    return row._replace(cells=cells)


def _read_parquet(path: str, source: pq.ParquetFile | pa.BufferReader) -> Iterator[Row]:
    with _whole_file(path, "Parquet"):
        file = source if isinstance(source, pq.ParquetFile) else pq.ParquetFile(source)
        yield from _read_batches(path, file.schema_arrow.names, file.iter_batches(1024))


@contextmanager
def _whole_file(path: str, kind: str) -> Iterator[None]:
    """Turn the errors of a damaged file into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole {kind} file ({error}); write or fetch it again") from error


def _read_batches(path: str, names: list[str], batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    number, names = 0, clean_row_names(path, names)
    for batch in batches:
        batch.validate(full=True)  # texts that are not UTF-8 would be a `UnicodeDecodeError`
        columns = [_cells(path, name, column) for name, column in zip(names, batch.columns, strict=True)]
        for cells in zip(*columns, strict=True):
            number += 1
            yield Row(path, number, None, dict(zip(names, cells, strict=True)))


def _cells(path: str, name: str, column: pa.Array) -> list:
    """Return the cells of a column.

    32-bit floats become their shortest decimals, also in lists and fields; Python makes 0.10000000149011612 of 0.1.
    """
    if (texts := _with_floats_as(column.type, pa.string())) != column.type:
        column = column.cast(texts).cast(_with_floats_as(column.type, pa.float64()))
    try:
        return column.to_pylist()
    except (OverflowError, ValueError, KeyError) as error:  # times, which Python has from the year 1 to 9999
        raise InputError(f"{path}, column {name!r}: cannot be read ({error}); store it as text, or drop it") from error


def _with_floats_as(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return a type with another one in place of 32-bit floats."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_floats_as(field.type, other)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_floats_as(kind.value_type, other), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_with_floats_as(kind.value_type, other))
    return other if kind == pa.float32() else kind
