"""Locks that allow one writer per table folder, on any storage; a killed writer does not block others for long."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
from pyarrow import fs

from sciqa.core import storage
from sciqa.core.errors import InputError

#: Seconds between two heartbeats, and since the last heartbeat after which a holder on another machine counts as gone.
BEAT, LOST = 10.0, 60.0


def lock(folder: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a table's folder while the table is written.

    The lock lies beside the folder, so that it survives the folder's deletion. For a local path it is a kernel
    lock, which is released when the process ends. On other storage it is a file that is rewritten every few seconds.
    Where no file can be written, no lock is held, since the folder cannot be written either.

    Raises:
        InputError: another process holds the lock.
    """
    filesystem, inner = storage.resolve_storage(folder)
    parent, _, name = inner.rstrip("/").rpartition("/")
    if isinstance(filesystem, fs.LocalFileSystem):
        return _lock_file(folder, Path(parent, f".{name}.lock"))
    return _lock_objects(folder, filesystem, parent, f".{name}.lock-")


@contextlib.contextmanager
def _lock_file(folder: str, path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refusal(folder, file.read().decode()) from error
        except OSError:  # a file system without locks
            yield
            return
        with storage.storage_errors(folder, "written"):
            file.truncate(0)
            file.write(json.dumps(_holder()).encode())
        yield
        file.truncate(0)


@contextlib.contextmanager
def _lock_objects(folder: str, filesystem: fs.FileSystem, parent: str, prefix: str) -> Iterator[None]:
    mine = f"{parent}/{prefix}{uuid.uuid4().hex}"

    def beat() -> None:
        with filesystem.open_output_stream(mine) as stream:
            stream.write(json.dumps(_holder()).encode())

    try:
        if not storage.is_object_storage(filesystem):
            filesystem.create_dir(parent, recursive=True)
        beat()
    except OSError:
        yield
        return
    done = threading.Event()

    def keep_beating() -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(OSError):
                beat()

    thread = threading.Thread(target=keep_beating, daemon=True)
    try:
        _check_others(folder, filesystem, parent, prefix, mine)
        thread.start()
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        with contextlib.suppress(OSError):
            filesystem.delete_file(mine)


def _check_others(folder: str, filesystem: fs.FileSystem, parent: str, prefix: str, mine: str) -> None:
    """Raise `InputError` if another holder is alive; the times compared are of the storage's own clock."""
    locks = {
        entry.path: entry.mtime_ns
        for entry in filesystem.get_file_info(fs.FileSelector(parent))
        if entry.base_name.startswith(prefix)
    }
    now = locks.pop(mine, time.time_ns())
    for path, beaten in locks.items():
        try:
            with filesystem.open_input_stream(path) as stream:
                holder = json.loads(stream.read())
        except (OSError, ValueError):  # just released, or being written
            continue
        same_place = all(holder.get(name) == value for name, value in _place().items())
        gone = not _is_here(holder) if same_place else now - beaten > LOST * 1e9
        if not gone:
            raise _refusal(folder, json.dumps(holder))
        with contextlib.suppress(OSError):
            filesystem.delete_file(path)


def _holder() -> dict:
    return _place() | {"pid": os.getpid(), "started": psutil.Process().create_time()}


def _place() -> dict[str, str]:
    """Return what identifies the machine and container of this process; host names alone may be the same."""
    place = {"host": socket.gethostname(), "boot": "", "space": ""}
    with contextlib.suppress(OSError):  # another system than Linux
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place["space"] = str(Path("/proc/self/ns/pid").readlink())
    return place


def _is_here(holder: dict) -> bool:
    """Whether the process that took a lock here, as `_place` tells, still runs."""
    try:
        return psutil.Process(holder["pid"]).create_time() == holder["started"]
    except (psutil.NoSuchProcess, KeyError):
        return False


def _refusal(folder: str, holder: str) -> InputError:
    try:
        about = json.loads(holder)
        who = f"process {about['pid']} on {about['host']}"
    except (ValueError, KeyError):
        who = "another process"
    return InputError(f"{folder}: {who} is writing there; wait for it, or pass another --output")
