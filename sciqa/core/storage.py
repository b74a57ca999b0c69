"""Files on any storage that pyarrow's filesystems support, written completely or not at all."""

import contextlib
import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from sciqa.core.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Most requests to storage at once.
READERS = 32


def resolve_storage(path: str | os.PathLike) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path (local, or a URI such as `s3://bucket/run`) and the path within it."""
    text = _without_file_scheme(os.fspath(path))
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).absolute())
    if "?" in text:
        raise InputError(
            f"{text}: options in a path's address are not taken; set them in the environment of every node "
            "(AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3)"
        )
    scheme, _, rest = text.partition("://")
    authority, _, name = rest.strip("/").partition("/")
    try:
        filesystem, root = _open_filesystem(scheme, authority)
    except (pa.ArrowException, ImportError, OSError) as error:
        raise InputError(f"{text}: not a storage path that can be opened ({error})") from error
    # The name is taken as it is written; within a URI `#`, `%`, spaces and letters such as é would be something else.
    inner = f"{root.rstrip('/')}/{name}"
    return filesystem, inner.strip("/") if is_object_storage(filesystem) else inner


def _without_file_scheme(text: str) -> str:
    """Return the local path in a URI such as `file:///data/run`, and any other path unchanged."""
    inner = re.sub(r"^file://(localhost)?(?=/)", "", text)
    if inner.startswith("file:"):
        raise InputError(f"{text}: file:// and a whole path expected, such as file:///data/run")
    return inner


@functools.cache
def _open_filesystem(scheme: str, authority: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a bucket or server, and the path of its top, which is that of a bucket or container.

    That of S3 uploads a file in one PUT unless it is too large for one.
    """
    return fs.FileSystem.from_uri(f"{scheme}://{authority}{'?allow_delayed_open=true' * (scheme == 's3')}")


def is_object_storage(filesystem: fs.FileSystem) -> bool:
    """Whether files on this storage appear only when complete, and folders need not be made."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


@contextlib.contextmanager
def storage_errors(path: str, what: str) -> Iterator[None]:
    """Turn errors of storage (a full disk, a lost mount, a forbidden bucket) into an `InputError` of one line.

    `what` is what fails, as a participle for the message, such as `written`.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        missing = what == "read" and isinstance(error, FileNotFoundError)
        raise InputError(f"{path}: {'no such file' if missing else f'cannot be {what} ({error})'}") from error


def join_paths(folder: str, *names: str) -> str:
    """Join names onto a folder, local or URI."""
    return "/".join([folder.rstrip("/"), *names])


def path_exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inner = resolve_storage(path)
    with storage_errors(path, "reached"):
        return filesystem.get_file_info(inner).type != fs.FileType.NotFound


def read_bytes(path: str, compression: str | None = "detect") -> bytes:
    """Return a file's bytes; .gz, .bz2 and .zst files are decompressed, unless `compression` is None."""
    filesystem, inner = resolve_storage(path)
    with storage_errors(path, "read"), filesystem.open_input_stream(inner, compression=compression) as stream:
        return stream.read()


def read_storage_pieces(path: str) -> Iterator[bytes]:
    """Yield a file's bytes in pieces of 4 MB."""
    filesystem, inner = resolve_storage(path)
    with storage_errors(path, "read"), filesystem.open_input_stream(inner) as stream:
        while data := stream.read(1 << 22):
            yield data


def map_storage(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return a function's results for all items, in order; its calls, which wait for storage, run in threads."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(function, items))


def write_bytes(path: str, data: bytes) -> str:
    """Write a file, completely or not at all, and return the sha256 of its content.

    The data goes to a temporary file that is moved into place. Object stores need none: a file appears when complete.
    """
    filesystem, inner = resolve_storage(path)
    with storage_errors(path, "written"):
        if is_object_storage(filesystem):
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
        with contextlib.suppress(OSError):  # the remains on a full disk
            filesystem.delete_file(aside)
        raise


def read_json(path: str) -> dict:
    """Return the object in a JSON file that this program wrote."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and run the step again") from error


def write_json(path: str, value: dict) -> None:
    """Write an object as JSON, completely or not at all."""
    write_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())


def list_files(path: str, *suffixes: str) -> list[str]:
    """Return the path itself if it is a file, else the folder's files with one of the suffixes, sorted.

    Files and folders whose names begin with a dot or an underscore are skipped.
    """
    return [file for file, _ in stat_files(path, *suffixes)]


def stat_files(path: str, *suffixes: str, missing_ok: bool = False) -> list[tuple[str, list]]:
    """Return the files of `list_files`, each with [size in bytes, time of change in ns], to detect changes.

    Without suffixes, all files of a folder are returned. There may be none only if `missing_ok` is set.
    """
    filesystem, inner = resolve_storage(path)
    with storage_errors(path, "reached"):
        info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.NotFound and not missing_ok:
        raise InputError(f"{path}: no such file or folder")
    if info.type == fs.FileType.File:
        return [(path, [info.size, info.mtime_ns])]
    endings = tuple(f".{suffix}" for suffix in suffixes) or ("",)
    found = []
    with storage_errors(path, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=missing_ok, recursive=True))
    for entry in entries:
        name = entry.path[len(inner) :].lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if entry.type == fs.FileType.File and name.endswith(endings) and not hidden:
            found.append((join_paths(path, name), [entry.size, entry.mtime_ns]))
    found.sort()
    if not found and not missing_ok:
        ending = " ending in " + " or ".join("." + suffix for suffix in suffixes) if suffixes else ""
        raise InputError(f"{path}: holds no file{ending}")
    return found


def list_folders(path: str) -> list[str]:
    """Return the sorted names of a folder's subfolders, except tables' `records`; none if the folder is missing."""
    found = (entry.base_name for entry in _list_entries(path) if entry.type == fs.FileType.Directory)
    return sorted(name for name in found if not name.startswith((".", "_")))


def list_names(folder: str) -> list[str]:
    """Return the sorted names of a folder's entries, except unfinished files; none if the folder is missing."""
    return sorted({entry.base_name for entry in _list_entries(folder) if not entry.base_name.startswith(".")})


def _list_entries(folder: str) -> list[fs.FileInfo]:
    filesystem, inner = resolve_storage(folder)
    with storage_errors(folder, "listed"):
        return filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))


def absolute_path(path: str) -> str:
    """Return the absolute path, since workers may not share the driver's working folder; a URI has no `/` at its end.

    Raises:
        InputError: a path that begins with `~`, which only a shell replaces, or a `file:` without a whole path.
    """
    if re.match(r"~[^/]*/|~$", path) and not Path(path).exists():
        raise InputError(f"{path}: ~ stands for no folder here; write $HOME, or the whole path")
    local = _without_file_scheme(path)
    if local == path and "://" not in path:
        return os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")
    return re.sub(r"(?<=[^/:])/+$", "", path if "://" in local else f"file://{local}")


def is_same_path(one: str, other: str) -> bool:
    """Whether two paths name one place, however they are spelled; links on this machine are followed."""
    one, other = (_without_file_scheme(absolute_path(path)) for path in (one, other))
    return one == other or ("://" not in one + other and Path(one).resolve() == Path(other).resolve())


def copy_files(source: str, destination: str) -> None:
    """Copy a file, or all files of a folder, from any storage to any other."""
    (from_fs, from_path), (to_fs, to_path) = resolve_storage(source), resolve_storage(destination)
    with storage_errors(destination, "written"):
        if not is_object_storage(to_fs):
            whole = from_fs.get_file_info(from_path).type == fs.FileType.Directory
            to_fs.create_dir(to_path if whole else to_path.rpartition("/")[0], recursive=True)
        fs.copy_files(from_path, to_path, source_filesystem=from_fs, destination_filesystem=to_fs)


def delete_path(path: str) -> None:
    """Delete a file, or a folder with its content, if it exists."""
    filesystem, inner = resolve_storage(path)
    with storage_errors(path, "deleted"):
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(inner)
        elif kind == fs.FileType.File:
            filesystem.delete_file(inner)


def check_storage_writable(folder: str) -> None:
    """Raise `InputError` unless a file can be written in a folder, which is made if it is missing."""
    probe = join_paths(folder, f".probe-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete_path(probe)
    except InputError as error:
        raise InputError(f"{folder}: cannot be written ({error}); pass --output a folder that can") from error
