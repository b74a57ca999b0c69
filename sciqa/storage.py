"""Files and tables on any storage that pyarrow's filesystems take, written whole or not at all."""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from sciqa.errors import InputError

INPUTS = "_inputs.json"
MANIFEST = "_manifest.json"


def resolve(path: str | os.PathLike) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path (local, or a URI such as `s3://bucket/run`) and the path within it."""
    text = os.fspath(path)
    if "://" in text:
        try:
            return fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, ImportError, OSError) as error:
            raise InputError(f"{text}: not a storage path that can be opened ({error})") from error
    return fs.LocalFileSystem(), str(Path(text).absolute())


def join(folder: str, *names: str) -> str:
    """Join names onto a folder, local or URI."""
    return "/".join([folder.rstrip("/"), *names])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inner = resolve(path)
    return filesystem.get_file_info(inner).type != fs.FileType.NotFound


def read_bytes(path: str) -> bytes:
    """Return a file's bytes."""
    filesystem, inner = resolve(path)
    try:
        with filesystem.open_input_stream(inner) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (IsADirectoryError, PermissionError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def sha256(path: str) -> str:
    """Return the sha256 of a file, read in pieces."""
    filesystem, inner = resolve(path)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(inner) as stream:
            while data := stream.read(1 << 22):
                digest.update(data)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    return digest.hexdigest()


def write_bytes(path: str, data: bytes) -> str:
    """Write a file aside, move it into place, and return the sha256 of what was written."""
    filesystem, inner = resolve(path)
    parent, name = inner.rsplit("/", 1)
    filesystem.create_dir(parent, recursive=True)
    aside = f"{parent}/.{name}.{uuid.uuid4().hex}"
    with filesystem.open_output_stream(aside) as stream:
        stream.write(data)
    filesystem.move(aside, inner)
    return hashlib.sha256(data).hexdigest()


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


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or every one in a folder in the order of their names."""
    return pa.concat_tables([open_parquet(file).read(columns) for file in list_files(path, "parquet")])


def list_files(path: str, *suffixes: str) -> list[str]:
    """Return the path itself where it is a file, else the files of a folder with one of the suffixes, sorted.

    Files and folders whose names begin with a dot or an underscore are not looked at.
    """
    return [file for file, _ in stat_files(path, *suffixes)]


def stat_files(path: str, *suffixes: str) -> list[tuple[str, list]]:
    """Return `list_files` with each file's [size in bytes, time of change in ns], to tell when it changes."""
    filesystem, inner = resolve(path)
    info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{path}: no such file or folder")
    if info.type == fs.FileType.File:
        return [(path, [info.size, info.mtime_ns])]
    endings = tuple(f".{suffix}" for suffix in suffixes)
    found = []
    for entry in filesystem.get_file_info(fs.FileSelector(inner, recursive=True)):
        name = entry.path[len(inner) :].lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if entry.type == fs.FileType.File and name.endswith(endings) and not hidden:
            found.append((join(path, name), [entry.size, entry.mtime_ns]))
    found.sort()
    if not found:
        raise InputError(f"{path}: holds no file ending in {' or '.join('.' + suffix for suffix in suffixes)}")
    return found


def list_folders(path: str) -> list[str]:
    """Return the names of the folders in a folder, sorted; none where it is not there."""
    filesystem, inner = resolve(path)
    entries = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return sorted(entry.base_name for entry in entries if entry.type == fs.FileType.Directory)


def absolute(path: str) -> str:
    """Return a path that workers can take too, which may not share the driver's working folder; a URI is one."""
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")


def part_path(folder: str, part: int) -> str:
    """Return where a shard is of a table whose shards are those of the exam."""
    return join(folder, f"{part:05d}.parquet")


def copy_files(source: str, destination: str) -> None:
    """Copy all files of a folder, from any storage to any other."""
    (from_fs, from_path), (to_fs, to_path) = resolve(source), resolve(destination)
    to_fs.create_dir(to_path, recursive=True)
    fs.copy_files(from_path, to_path, source_filesystem=from_fs, destination_filesystem=to_fs)


def delete(path: str) -> None:
    """Delete a file or a folder with all it holds, if it is there."""
    filesystem, inner = resolve(path)
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
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder}: cannot be written ({error}); pass --output a folder that can") from error


def fingerprint(value: object) -> str:
    """Return a short hash of anything JSON holds, the same in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def begin(folder: str, inputs: dict) -> set[str]:
    """Open a table's folder for writing and return the names of the parts it already holds.

    A folder that was begun from other inputs is emptied first: a table never mixes two runs.

    Args:
        folder: where the table's parts go.
        inputs: all that the table's content follows from.
    """
    key = {"fingerprint": fingerprint(inputs), "inputs": inputs}
    if exists(join(folder, INPUTS)):
        if read_json(join(folder, INPUTS)).get("fingerprint") == key["fingerprint"]:
            return set(names(folder))
        delete(folder)
    write_json(join(folder, INPUTS), key)
    return set()


def finish(folder: str, manifest: dict) -> None:
    """Mark a table as whole: its manifest is written last, so that a manifest means that nothing is missing."""
    write_json(join(folder, MANIFEST), manifest)


def read_manifest(folder: str, step: str) -> dict:
    """Return the manifest of a whole table, or raise `InputError` that names the step that makes it."""
    if not exists(join(folder, MANIFEST)):
        raise InputError(f"{folder}: not there, or not finished; run `sciqa {step}` with the same --output first")
    return read_json(join(folder, MANIFEST))


def names(folder: str) -> Iterator[str]:
    """Yield the names of what is in a folder, but for what is being written."""
    filesystem, inner = resolve(folder)
    for entry in filesystem.get_file_info(fs.FileSelector(inner)):
        if not entry.base_name.startswith("."):
            yield entry.base_name
