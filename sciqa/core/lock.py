"""Locks that allow one writer per table folder, on any storage; a killed writer does not block others for long."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pyarrow import fs

from sciqa.core import storage
from sciqa.core.errors import InputError

#: Seconds between two heartbeats, and since the last heartbeat after which a holder on another machine counts as gone.
BEAT, LOST = 10.0, 60.0
#: Folders whose lock this process has lost to another one.
_taken: set[str] = set()


def lock(folder: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a table's folder while the table is written.

    The lock lies beside the folder, so that it survives the folder's deletion; if it is a symbolic link, another one
    beside its target. For a local path it is a kernel lock, which is released when the process ends. On other storage
    it is a file that is rewritten every few seconds. Where no file can be written, no lock is held, since the folder
    cannot be written either.

    Raises:
        InputError: another process holds the lock, or has taken it over, as this one gave no sign of life for long.
    """
    filesystem, inner = storage.resolve_storage(folder)
    parent, _, name = inner.rstrip("/").rpartition("/")
    if isinstance(filesystem, fs.LocalFileSystem):
        return _lock_files(folder, {Path(parent).resolve() / name, Path(inner).resolve()})
    return _lock_objects(folder, filesystem, parent, f".{name}.lock-")


def check_lock_held(folder: str) -> None:
    """Raise `InputError` if another process has taken over the lock of a folder that this one locked."""
    if folder.rstrip("/") in _taken:
        raise InputError(
            f"{folder}: another process has taken over its lock, as this one gave no sign of life for {LOST:.0f} "
            "seconds, and may have written there; wait for it, and run this step again"
        )


@contextlib.contextmanager
def _lock_files(folder: str, paths: set[Path]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for path in sorted(paths):
            stack.enter_context(_lock_file(folder, path.with_name(f".{path.name}.lock")))
        yield


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
        if not storage.is_object_storage(filesystem):
            filesystem.create_dir(parent, recursive=True)
        with filesystem.open_output_stream(mine) as stream:
            stream.write(json.dumps(_holder()).encode())

    if not _begins(beat, folder.rstrip("/").rpartition("/")[0]):
        yield
        return
    done = threading.Event()

    def keep_beating() -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(OSError):
                if filesystem.get_file_info(mine).type == fs.FileType.NotFound:
                    _taken.add(folder.rstrip("/"))
                    return
                beat()

    thread = threading.Thread(target=keep_beating, daemon=True)
    try:
        _check_others(folder, filesystem, parent, prefix, mine)
        thread.start()
        yield
        check_lock_held(folder)
    finally:
        _taken.discard(folder.rstrip("/"))
        done.set()
        if thread.is_alive():
            thread.join()
        with contextlib.suppress(OSError):
            filesystem.delete_file(mine)


def _begins(beat: Callable[[], None], parent: str) -> bool:
    """Write a lock's file for the first time, and return whether any file can be written in its folder.

    Raises:
        InputError: other files can be written there, but not this one.
    """
    try:
        beat()
    except OSError:
        try:
            storage.check_storage_writable(parent)
        except InputError:
            return False
        with storage.storage_errors(parent, "written"):  # an error that has passed
            beat()
    return True


def _check_others(folder: str, filesystem: fs.FileSystem, parent: str, prefix: str, mine: str) -> None:
    """Raise `InputError` if another holder is alive; the times compared are of the storage's own clock."""
    with storage.storage_errors(folder, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(parent))
    locks = {entry.path: entry.mtime_ns for entry in entries if entry.base_name.startswith(prefix)}
    now = locks.pop(mine, time.time_ns())
    for path, beaten in locks.items():
        try:
            with storage.storage_errors(folder, "reached"):
                holder = _read_holder(filesystem, path)
        except ValueError:  # being written
            continue
        if holder is None:
            continue
        silent = now - beaten > LOST * 1e9
        same_place = all(holder.get(name) == value for name, value in _place().items())
        if not (_has_ended(holder, silent) if same_place else silent):
            raise _refusal(folder, json.dumps(holder))
        with contextlib.suppress(OSError):
            filesystem.delete_file(path)


def _read_holder(filesystem: fs.FileSystem, path: str) -> dict | None:
    """Return what a lock's file says of its holder; None if it has just been released."""
    try:
        with filesystem.open_input_stream(path) as stream:
            return json.loads(stream.read())
    except FileNotFoundError:
        return None


def _holder() -> dict:
    holder: dict[str, object] = _place() | {"pid": os.getpid()}
    with contextlib.suppress(OSError):  # another system than Linux
        holder["ticks"] = _ticks(os.getpid())
    return holder


def _ticks(pid: int) -> int:
    """Return the clock ticks from the start of this machine to that of a process, which no change of a clock moves."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])  # field 22, see proc(5)


def _place() -> dict[str, str]:
    """Return what identifies the machine and container of this process; host names alone may be the same."""
    place = {"host": socket.gethostname(), "boot": "", "space": ""}
    with contextlib.suppress(OSError):  # another system than Linux
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place["space"] = str(Path("/proc/self/ns/pid").readlink())
    return place


def _has_ended(holder: dict, silent: bool) -> bool:
    """Whether the process that took a lock here, as `_place` tells, has ended.

    One of which this process sees no more than that its number is in use has ended if it has been silent for long.
    """
    try:
        os.kill(holder["pid"], 0)
        return _ticks(holder["pid"]) != holder["ticks"]
    except ProcessLookupError:
        return True
    except (OSError, KeyError):
        return silent


def _refusal(folder: str, holder: str) -> InputError:
    try:
        about = json.loads(holder)
        who = f"process {about['pid']} on {about['host']}"
    except (ValueError, KeyError):
        who = "another process"
    return InputError(f"{folder}: {who} is writing there; wait for it, or pass another --output")
