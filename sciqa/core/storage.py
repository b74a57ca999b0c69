"""Files and tables on any storage that pyarrow's filesystems take, written whole or not at all."""

import contextlib
import functools
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from sciqa.core.errors import InputError

#: What a table follows from, and the list of what it holds, which is written last; in its `records`.
INPUTS, MANIFEST = "inputs.json", "manifest.json"
#: What can be done about a table that is in the way.
REMEDY = "pass another --output (or --name, for answers), or --overwrite to replace it"
#: What is said of a table whose `format` is not the program's.
OTHERWISE = "made by another version of sciqa, which computes this otherwise"


def resolve(path: str | os.PathLike) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path (local, or a URI such as `s3://bucket/run`) and the path within it."""
    text = os.fspath(path).removeprefix("file://")
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).absolute())
    if "?" in text:
        raise InputError(
            f"{text}: options in a path's address are not taken; set them in the environment of every node "
            "(AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3)"
        )
    try:
        if text.startswith("s3://"):
            inner = text.removeprefix("s3://").strip("/")
            return _open_bucket(inner.partition("/")[0]), inner
        return fs.FileSystem.from_uri(text)
    except (pa.ArrowException, ImportError, OSError) as error:
        raise InputError(f"{text}: not a storage path that can be opened ({error})") from error


@functools.cache
def _open_bucket(bucket: str) -> fs.FileSystem:
    """Return the filesystem of an S3 bucket; a file written to it is one PUT, unless it is too large for one."""
    return fs.FileSystem.from_uri(f"s3://{bucket}?allow_delayed_open=true")[0]


def is_object_store(filesystem: fs.FileSystem) -> bool:
    """Whether files there appear whole or not at all, and folders need not be made."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


@contextlib.contextmanager
def reached(path: str, what: str) -> Iterator[None]:
    """Turn what storage raises (a full disk, a lost mount, a forbidden bucket) into an `InputError` of one line.

    Args:
        path: that is worked on.
        what: cannot be done where it fails, as in `written`.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        missing = what == "read" and isinstance(error, FileNotFoundError)
        raise InputError(f"{path}: {'no such file' if missing else f'cannot be {what} ({error})'}") from error


def join(folder: str, *names: str) -> str:
    """Join names onto a folder, local or URI."""
    return "/".join([folder.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inner = resolve(path)
    with reached(path, "reached"):
        return filesystem.get_file_info(inner).type != fs.FileType.NotFound


def read_bytes(path: str, compression: str | None = "detect") -> bytes:
    """Return a file's bytes; those of a file called .gz, .bz2 or .zst unpacked, unless `compression` is None."""
    filesystem, inner = resolve(path)
    with reached(path, "read"), filesystem.open_input_stream(inner, compression=compression) as stream:
        return stream.read()


def sha256(path: str) -> str:
    """Return the sha256 of a file, read in pieces."""
    filesystem, inner = resolve(path)
    digest = hashlib.sha256()
    with reached(path, "read"), filesystem.open_input_stream(inner) as stream:
        while data := stream.read(1 << 22):
            digest.update(data)
    return digest.hexdigest()


def write_bytes(path: str, data: bytes) -> str:
    """Write a file, whole or not at all, and return the sha256 of what was written.

    It is written aside and moved into place, but where the storage itself shows no file before it is whole.
    """
    filesystem, inner = resolve(path)
    with reached(path, "written"):
        if is_object_store(filesystem):
            with filesystem.open_output_stream(inner) as stream:
                stream.write(data)
        else:
            _write_aside(filesystem, inner, data)
    return hashlib.sha256(data).hexdigest()


def _write_aside(filesystem: fs.FileSystem, inner: str, data: bytes) -> None:
    parent, name = inner.rsplit("/", 1)
    aside = f"{parent}/.{name}.{uuid.uuid4().hex}"
    filesystem.create_dir(parent, recursive=True)
    try:
        with filesystem.open_output_stream(aside) as stream:
            stream.write(data)
        filesystem.move(aside, inner)
    except OSError:
        with contextlib.suppress(OSError):  # what a full disk left of it
            filesystem.delete_file(aside)
        raise


def read_json(path: str) -> dict:
    """Return the object in a JSON file that this program wrote."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and run the step again") from error


def write_json(path: str, value: dict) -> None:
    """Write an object as JSON, whole or not at all."""
    write_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())


def write_table(path: str, table: pa.Table, row_group_size: int | None = None) -> str:
    """Write a table as one zstd Parquet file, whole or not at all; return its sha256."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    return write_bytes(path, buffer.getvalue())


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file, or say that it is none."""
    filesystem, inner = resolve(path)
    try:
        return pq.ParquetFile(inner, filesystem=filesystem, pre_buffer=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({error}); write or fetch it again") from error


def read_rows(path: str, first: int, last: int, columns: list[str] | None = None) -> list[dict]:
    """Return the rows of one Parquet file from number `first` up to but not including `last`, however it is cut."""
    file = open_parquet(path)
    starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
    groups = [n for n in range(file.num_row_groups) if starts[n] < last and first < starts[n + 1]]
    if not groups:
        return []
    table = file.read_row_groups(groups, columns)
    return table.slice(first - int(starts[groups[0]]), last - first).to_pylist()


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or every one in a folder in the order of their names."""
    return pa.concat_tables([open_parquet(file).read(columns) for file in list_files(path, "parquet")])


def list_files(path: str, *suffixes: str) -> list[str]:
    """Return the path itself where it is a file, else the files of a folder with one of the suffixes, sorted.

    Files and folders whose names begin with a dot or an underscore are not looked at.
    """
    return [file for file, _ in stat_files(path, *suffixes)]


def stat_files(path: str, *suffixes: str) -> list[tuple[str, list]]:
    """Return `list_files` with each file's [size in bytes, time of change in ns], to tell when it changes.

    Without suffixes, all files of a folder.
    """
    filesystem, inner = resolve(path)
    with reached(path, "reached"):
        info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{path}: no such file or folder")
    if info.type == fs.FileType.File:
        return [(path, [info.size, info.mtime_ns])]
    endings = tuple(f".{suffix}" for suffix in suffixes) or ("",)
    found = []
    with reached(path, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    for entry in entries:
        name = entry.path[len(inner) :].lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if entry.type == fs.FileType.File and name.endswith(endings) and not hidden:
            found.append((join(path, name), [entry.size, entry.mtime_ns]))
    found.sort()
    if not found:
        ending = " ending in " + " or ".join("." + suffix for suffix in suffixes) if suffixes else ""
        raise InputError(f"{path}: holds no file{ending}")
    return found


def list_folders(path: str) -> list[str]:
    """Return the names of the folders in a folder, sorted, but for `records`; none where it is not there."""
    filesystem, inner = resolve(path)
    with reached(path, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    found = (entry.base_name for entry in entries if entry.type == fs.FileType.Directory)
    return sorted(name for name in found if not name.startswith((".", "_")))


def absolute(path: str) -> str:
    """Return a path that workers can take too, which may not share the driver's working folder; a URI is one."""
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")


def part_name(part: int) -> str:
    """Return the name of the file of a shard, by its number."""
    return f"{part:05d}.parquet"


def part_path(folder: str, part: int) -> str:
    """Return where a shard is of a table whose shards are numbered."""
    return join(folder, part_name(part))


def copy_files(source: str, destination: str) -> None:
    """Copy a file, or all files of a folder, from any storage to any other."""
    (from_fs, from_path), (to_fs, to_path) = resolve(source), resolve(destination)
    with reached(destination, "written"):
        if not is_object_store(to_fs):
            whole = from_fs.get_file_info(from_path).type == fs.FileType.Directory
            to_fs.create_dir(to_path if whole else to_path.rpartition("/")[0], recursive=True)
        fs.copy_files(from_path, to_path, source_filesystem=from_fs, destination_filesystem=to_fs)


def delete(path: str) -> None:
    """Delete a file or a folder with all it holds, if it is there."""
    filesystem, inner = resolve(path)
    with reached(path, "deleted"):
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(inner)
        elif kind == fs.FileType.File:
            filesystem.delete_file(inner)


def check_writable(folder: str) -> None:
    """Raise `InputError` unless a file can be written in a folder (made where it is missing)."""
    probe = join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except InputError as error:
        raise InputError(f"{folder}: cannot be written ({error}); pass --output a folder that can") from error


def fingerprint(value: object) -> str:
    """Return a short hash of anything JSON holds, the same in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def rows_hash(rows: Iterable[dict]) -> str:
    """Return a hash of rows in their order; the order of their columns and empty cells do not count."""
    digest = hashlib.sha256()
    for row in rows:
        given = {name: value for name, value in row.items() if value is not None}
        digest.update(json.dumps(given, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


class Begun(NamedTuple):
    """A table's folder that is open for writing.

    Attributes:
        names: of the shards that it already holds.
        rows: in each of its shards, where they are of even size.
        whole: whether nothing is missing.
    """

    names: set[str]
    rows: int | None
    whole: bool


def records(folder: str, *names: str) -> str:
    """Return a path in the folder beside a table's, `_NAME` beside `NAME`, which holds what is known of the table.

    The table's own folder holds its shards alone, so that it opens in any program that reads Parquet.
    """
    parent, _, name = folder.rstrip("/").rpartition("/")
    return join(parent, f"_{name}", *names)


def defaults_of(*kinds: type) -> dict:
    """Return the default of every option of some dataclasses, by its name."""
    return {field.name: field.default for kind in kinds for field in fields(kind)}


def differing(begun: dict, inputs: dict, defaults: dict) -> dict[str, tuple]:
    """Return in what two tables' inputs differ: (there, now) by name, of nested ones `outer: inner`.

    A name that one of them lacks counts as the option's default, so that options which came later change nothing.

    Args:
        begun: inputs as JSON gave them back.
        inputs: those of now.
        defaults: of the options, by name.
    """
    inputs = json.loads(json.dumps(inputs))
    defaults = json.loads(json.dumps(defaults, default=str))
    changed = {}
    for name in sorted(begun.keys() | inputs.keys()):
        there, now = (each.get(name, defaults.get(name)) for each in (begun, inputs))
        if isinstance(there, dict) and isinstance(now, dict):
            changed |= {f"{name}: {inner}": pair for inner, pair in differing(there, now, defaults).items()}
        elif there != now:
            changed[name] = there, now
    return changed


def begin(
    folder: str, inputs: dict, defaults: dict | None = None, rows: int | None = None, overwrite: bool = False
) -> Begun:
    """Open a table's folder for writing; a table never mixes two runs.

    Args:
        folder: where the table's parts go.
        inputs: all that the table's content follows from, and `format`, of what the program computes.
        defaults: of the options among the inputs, by name; see `differing`.
        rows: wanted in each part; a table that has parts goes on with the rows that those have.
        overwrite: empty a folder that was begun from other inputs, or by a version of the program that computes
            otherwise.

    Raises:
        InputError: the folder was begun so, or holds what no step of this program has begun.
    """
    held = set(names(folder))
    if exists(records(folder, INPUTS)):
        begun = read_json(records(folder, INPUTS))
        if not (changed := differing(begun["inputs"], inputs, defaults or {})):
            if held or begun.get("rows") == rows:
                whole = exists(records(folder, MANIFEST)) and read_json(records(folder, MANIFEST))["files"] == len(held)
                return Begun(held, begun.get("rows"), whole)
        elif not overwrite:
            said = OTHERWISE if set(changed) == {"format"} else _said_changes(changed)
            raise InputError(f"{folder}: {said}; {REMEDY}")
        clear(folder)
    elif "_manifest.json" in held or "_inputs.json" in held:
        if not overwrite:
            raise InputError(f"{folder}: {OTHERWISE}; {REMEDY}")
        clear(folder)
    elif held:
        raise InputError(f"{folder}: holds files that no step of sciqa made; pass another folder")
    write_json(records(folder, INPUTS), {"inputs": inputs, "rows": rows})
    return Begun(set(), rows, False)


def clear(folder: str) -> None:
    """Delete a table with its records; these go last, since without them its files would be anybody's."""
    delete(folder)
    delete(records(folder))


def _said_changes(changed: dict[str, tuple]) -> str:
    """Return in words in what a table's inputs differ, as `differing` gave it."""
    if (name := "format") not in changed:
        name = next(iter(changed))
    there, now = changed[name]
    more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"made from other inputs ({name}: {there!s:.60} there, {now!s:.60} now{more})"


def finish(folder: str, manifest: dict) -> None:
    """Mark a table as whole: its manifest is written last, so that a manifest means that nothing is missing."""
    write_json(records(folder, MANIFEST), manifest | {"files": len(set(names(folder)))})


def is_finished(folder: str) -> bool:
    """Whether a table, or a model that was trained, is there and whole."""
    return exists(records(folder, MANIFEST)) and any(True for _ in names(folder))


def read_manifest(folder: str, step: str, version: int | None = None) -> dict:
    """Return the manifest of a whole table, or raise `InputError` that names the step that makes it.

    Args:
        folder: of the table.
        step: that makes it.
        version: the `format` that the table must have, where that matters.
    """
    if not is_finished(folder):
        if exists(join(folder, "_manifest.json")):
            raise InputError(f"{folder}: {OTHERWISE}; run `sciqa {step} --overwrite`")
        raise InputError(f"{folder}: not there, or not finished; run `sciqa {step}` with the same --output first")
    manifest = read_json(records(folder, MANIFEST))
    if version is not None and manifest.get("format") != version:
        raise InputError(f"{folder}: {OTHERWISE}; run `sciqa {step} --overwrite`")
    return manifest


def names(folder: str) -> Iterator[str]:
    """Yield the names of what is in a folder, none where it is not there, but for what is being written."""
    filesystem, inner = resolve(folder)
    with reached(folder, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    for entry in entries:
        if not entry.base_name.startswith("."):
            yield entry.base_name
