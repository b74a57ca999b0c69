"""The machine's cache: results computed once per machine from a model's files, so that later workers start quickly."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sciqa.core.errors import InputError
from sciqa.core.storage import read_storage_pieces, storage_errors

#: Files that changed less than this many seconds ago may change again in the same clock tick; their hash is not cached.
TICK = 0.05
#: Errors of a disk that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_hashes: dict[str, tuple[list[int], str]] = {}


def cache_root() -> Path:
    """Return the folder of the machine's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sciqa"


def cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of the machine's cache. A missing folder is built once, completely or not at all.

    Args:
        name: name of the folder; it must change whenever the content would.
        build: writes the content into the folder it is given.

    Raises:
        InputError: the cache cannot be written.
    """
    root = cache_root()
    folder = root / name
    if folder.exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{name}.lock").open("w") as lock:
            with contextlib.suppress(OSError):  # without file locks, several workers may build, and one result is kept
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                _build(folder, build)
    except OSError as error:
        at = Path(str(error.filename))
        ours = error.errno in FULL or at == root or at in root.parents or root in at.parents
        if not ours or isinstance(error, FileNotFoundError):  # about what is read
            raise
        raise InputError(
            f"{root}: this machine's cache cannot be written ({error}); make room, or let XDG_CACHE_HOME name a folder "
            "that can be written"
        ) from error
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    aside.mkdir()  # of mode 0700, as `tempfile` makes them, other users could not read it
    try:
        build(aside)
        for path in filter(Path.is_file, aside.rglob("*")):
            _sync(path)
        aside.rename(folder)
    except OSError:
        if not folder.exists():  # else another worker has built it first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: a machine that loses power must not keep one with holes under its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def cached_copy(path: str, digest: str, size: int, limit: int) -> BinaryIO:
    """Return a file of any storage as an open file of the machine's cache, into which it is copied if it is not there.

    All such files together take no more than `limit` bytes: the least recently opened are removed, but none that any
    process has open. What a killed process was copying is never returned, and removed like the others.

    Args:
        path: the file.
        digest: sha256 of its content, in hexadecimal.
        size: its bytes.
        limit: most bytes of all copies, of which each caller may give another.

    Raises:
        InputError: another content than expected, no room beside the files in use, or a disk that cannot be written.
    """
    root = cache_root() / "copies"
    copy, found, every = root / digest, hashlib.sha256(), root / ".lock"
    with storage_errors(str(root), "written"), _locked(root / f".{digest}.lock"):  # one process copies a file
        with _locked(every):
            if copy.exists() and copy.stat().st_size == size:
                return _opened(copy)
            _make_room(root, size, limit)
            aside = tempfile.NamedTemporaryFile(prefix=".", dir=root, delete=False)  # noqa: SIM115 (closed below)
            fcntl.flock(aside, fcntl.LOCK_SH)
            aside.truncate(size)  # takes its room now
        with aside:
            try:
                for piece in read_storage_pieces(path):
                    found.update(piece)
                    aside.write(piece)
                aside.flush()
                _sync(Path(aside.name))
                if (found.hexdigest(), aside.tell()) != (digest, size):
                    raise InputError(f"{path}: not the file that was written (its sha256 differs)")
                with _locked(every):
                    Path(aside.name).replace(copy)
                    return _opened(copy)
            except BaseException:
                with _locked(every):
                    Path(aside.name).unlink()
                raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> BinaryIO:
    """Return a file open for reading, marked by a lock as in use, and as the most recently opened."""
    file = path.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(path)
    return file


def _make_room(root: Path, size: int, limit: int) -> None:
    copies = [path for path in root.iterdir() if not path.name.endswith(".lock")]
    files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in copies)
    total = size + sum(taken for _, taken, _ in files)
    for _, taken, path in files:
        if total <= limit:
            return
        with path.open("rb") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            total -= taken
    if total > limit:
        raise InputError(
            f"{root}: with what is in use {total:,} bytes are needed, --cache-bytes is {limit:,}; raise it"
        )


def cached_file_hash(path: Path) -> str:
    """Return the sha256 of a file. An unchanged file is read only once per machine.

    The machine's cache stores the hash by absolute path, with the file's size and change times.
    """
    path = path.resolve()
    name = hashlib.sha256(str(path).encode()).hexdigest()
    record = cache_root() / "hashes" / f"{name}.json"
    state = _state(path)
    if known := _known_hash(name, record, state):
        return known
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a lock, several processes may read the file
            stack.enter_context(_locked(record.with_name(f".{name}.lock")))
            if known := _known_hash(name, record, state):  # by the process that held the lock
                return known
        return _read_hash(path, name, record, state)


def _known_hash(name: str, record: Path, state: list[int]) -> str | None:
    """Return the stored sha256 of a file in this state, None if there is none."""
    if name not in _hashes or _hashes[name][0] != state:
        with contextlib.suppress(OSError, ValueError, KeyError):
            about = json.loads(record.read_text(encoding="utf-8"))
            _hashes[name] = about["state"], about["sha256"]
    known, digest = _hashes.get(name, ([], None))
    return digest if known == state else None


def _read_hash(path: Path, name: str, record: Path, state: list[int]) -> str:
    """Read a file and return its sha256, which is stored if the file has not changed meanwhile."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if _state(path) == state and time.time() - state[2] / 1e9 > TICK:
        _hashes[name] = state, digest
        with contextlib.suppress(OSError):  # an unwritable cache only costs time
            record.parent.mkdir(parents=True, exist_ok=True)
            aside = record.with_name(f".{name}.{os.getpid()}")
            aside.write_text(json.dumps({"path": str(path), "state": state, "sha256": digest}), encoding="utf-8")
            aside.replace(record)
    return digest


def _state(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
