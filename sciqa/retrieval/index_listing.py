"""Compare the files of an index with its records: presence and size of each, content where it may have changed."""

from collections.abc import Iterable
from pathlib import Path

from sciqa.core import hashes, storage
from sciqa.core.cache import cached_file_hash
from sciqa.core.errors import InputError


class IndexListing:
    """Sizes and times of change of all files of an index, from one listing of its folder.

    Args:
        index: folder of the index.
        finished: name of the index's manifest, which is written after all files that it describes.
        verify: read every file and compare its sha256; by default only files on this machine (or mounted here) that
            changed after the manifest was written, each once. Object storage has no such times: a copy's are new.
    """

    def __init__(self, index: str, finished: str, verify: bool = False) -> None:
        self.index, self.verify = index, verify
        self.found = dict(storage.stat_files(index, missing_ok=True))
        self.written = float("inf")
        if not storage.is_object_storage(storage.resolve_storage(index)[0]):
            self.written = self.found.get(storage.join_paths(index, finished), (0, self.written))[1]

    def wrong_file(self, record: dict) -> str | None:
        """Return the path of a shard's first file that is not the one that its record describes, and why, or None."""
        for name, size in record["bytes"].items():
            path = storage.join_paths(self.index, record["name"], name)
            there, changed = self.found.get(path, (None, 0))
            if there is None:
                return f"{path}: no such file"
            if there != size:
                return f"{path}: not the file that was written ({there:,} bytes, {size:,} expected)"
            if (self.verify or changed > self.written) and self._hash(path) != record["sha256"][name]:
                return f"{path}: not the file that was written (its sha256 differs)"
        return None

    def _hash(self, path: str) -> str:
        local = not self.verify and "://" not in path.removeprefix("file://")
        return cached_file_hash(Path(path.removeprefix("file://"))) if local else hashes.file_sha256(path)

    def check(self, records: list[dict]) -> None:
        """Raise `InputError` if a shard's file is not the one that its record describes."""
        if wrong := [text for text in storage.map_storage(self.wrong_file, records) if text]:
            raise InputError(f"{wrong[0]}; run `sciqa index{' --verify' * self.verify}`, which builds its shard again")

    def read_records(self, name: str, keys: dict[str, str], known: Iterable[dict] = ()) -> dict[str, dict | None]:
        """Return the record of each shard, or None if it is missing, of another key, or if a file is not as it says.

        Args:
            name: file name of the records.
            keys: key that each shard's record must have, by the shard's name.
            known: records that need not be read.
        """
        held = {record["name"]: record for record in known}

        def read(shard: str) -> dict | None:
            path = storage.join_paths(self.index, shard, name)
            if path not in self.found:
                return None
            record = held.get(shard) or storage.read_json(path)
            current = record["key"] == keys[shard] and "bytes" in record
            return record if current and not self.wrong_file(record) else None

        return dict(zip(keys, storage.map_storage(read, keys), strict=True))
