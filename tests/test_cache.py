"""Copies of files of other storage in the machine's cache: limited, shared by processes, whole or not at all."""

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sciqa.core import cache
from sciqa.core.cache import cached_copy, cached_folder
from sciqa.core.errors import InputError

SIZE = 1000


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A function that returns an open copy of a file, which is named by a letter, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def copy(letter, limit=3 * SIZE, content=None):
        path, data = tmp_path / letter, letter.encode() * SIZE
        if content is not None or not path.exists():
            path.write_bytes(data if content is None else content)
        return cached_copy(str(path), hashlib.sha256(data).hexdigest(), SIZE, limit)

    return copy


def cached(tmp_path):
    return sorted(
        path.read_bytes()[:1].decode() for path in (tmp_path / "cache/sciqa/copies").iterdir() if path.stat().st_size
    )


def test_the_least_recently_opened_copies_make_room(tmp_path, copies):
    for letter in "abcad":
        with copies(letter) as file:
            assert file.read() == letter.encode() * SIZE
            assert Path(file.name).read_bytes()[:1] == letter.encode()
    assert cached(tmp_path) == ["a", "c", "d"]
    copies("a", content=b"").close()  # not read again


def test_a_copy_in_use_is_not_removed(tmp_path, copies):
    with copies("a"), copies("b"):
        copies("c").close()
        copies("d").close()
        assert cached(tmp_path) == ["a", "b", "d"]
        with (
            copies("c"),
            pytest.raises(InputError, match=r"copies: with what is in use 4,000 bytes .* --cache-bytes is 3,000"),
        ):
            copies("d")
    copies("d").close()


def test_a_partial_or_wrong_copy_is_never_used(tmp_path, copies, monkeypatch):
    for content in (b"a" * (SIZE - 1), b"b" * SIZE):  # the same size too
        with pytest.raises(InputError, match="/a: not the file that was written"):
            copies("a", content=content)
    assert cached(tmp_path) == []
    (tmp_path / "a").write_bytes(b"a" * SIZE)
    with monkeypatch.context() as killed:
        killed.setattr(cache, "read_storage_pieces", lambda path: os.kill(os.getpid(), 9))
        if (child := os.fork()) == 0:
            copies("a")
        os.waitpid(child, 0)
    (left,) = [path for path in (tmp_path / "cache/sciqa/copies").iterdir() if path.stat().st_size]
    assert left.stat().st_size == SIZE
    with copies("a") as file, copies("b"), copies("c"):
        assert file.read() == b"a" * SIZE
    assert not left.exists()


def test_a_copy_that_lost_its_end_is_made_anew_and_a_new_one_is_on_the_disk(copies, monkeypatch):
    synced = []
    monkeypatch.setattr(cache.os, "fsync", synced.append)
    with copies("a") as file:
        os.truncate(file.name, SIZE - 1)
    with copies("a") as file:
        assert file.read() == b"a" * SIZE
    assert len(synced) == 2
    cached_folder("of two files", lambda aside: [(aside / name).touch() for name in "ab"])
    assert len(synced) == 4


def test_many_at_once_share_their_copies_and_the_limit(tmp_path, copies):
    def read(number):
        letter = "abcdefgh"[number % 8]
        with copies(letter, limit=8 * SIZE) as file:
            return file.read() == letter.encode() * SIZE

    for letter in "abcdefgh":
        (tmp_path / letter).write_bytes(letter.encode() * SIZE)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(200)))
    assert cached(tmp_path) == list("abcdefgh")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/sciqa: this machine's cache cannot be written \(.*XDG_CACHE_HOME"):
        cached_folder("made", lambda folder: None)

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    def wrong(folder):
        raise OSError("not a model")  # as transformers raises it, without a number

    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cannot be written .*No space left on device"):
        cached_folder("made", full)
    with pytest.raises(InputError, match=r"cannot be written .*Permission denied"):
        cached_folder("made", lambda folder: forbidden(folder / "file"))
    with pytest.raises(OSError, match=r"^not a model$"):
        cached_folder("made", wrong)
    with pytest.raises(PermissionError):  # of what is read
        cached_folder("made", lambda folder: forbidden(tmp_path / "model.gguf"))
    assert [path.name for path in (tmp_path / "cache/sciqa").iterdir()] == [".made.lock"]


def test_other_users_can_read_what_one_has_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o022)
    try:
        made = cached_folder("made", lambda folder: (folder / "file").write_text("x"))
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o755
