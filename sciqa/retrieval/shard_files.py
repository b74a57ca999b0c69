"""Open a shard's files on any storage: FAISS and BM25 indexes, vectors, passages."""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs

from sciqa.core import storage, tables
from sciqa.core.cache import cached_copy
from sciqa.core.errors import InputError
from sciqa.retrieval.index_shards import ROW_GROUP
from sciqa.retrieval.vectors import StoredVectors

if TYPE_CHECKING:
    import faiss

    from sciqa.retrieval.bm25 import Bm25Index


class ShardFiles:
    """The files of one shard of an index, each opened once and kept open.

    FAISS and BM25 files are memory-mapped, those on object storage from the machine's cache.

    Args:
        folder: folder of the shard.
        record: the shard's record in the manifest.
        cache_bytes: most bytes of files from object storage in the machine's cache.

    Raises:
        InputError: when a file is opened that is not there, or holds another number of rows than the record says; or a
            table of passages of another size.
    """

    def __init__(self, folder: str, record: dict, cache_bytes: int) -> None:
        self.folder, self.record, self.cache_bytes = folder, record, cache_bytes

    @functools.cached_property
    def faiss(self) -> "faiss.Index":
        """Return the FAISS index."""
        import faiss

        with self._opening("index.faiss"):
            opened = faiss.read_index(self._local_path("index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        self._check_rows("index.faiss", opened.ntotal)
        return opened

    @functools.cached_property
    def words(self) -> "Bm25Index":
        """Return the BM25 index."""
        from sciqa.retrieval.bm25 import Bm25Index

        with self._opening("words.arrow"):
            opened = Bm25Index(self._local_path("words.arrow"))
        self._check_rows("words.arrow", opened.passages)
        return opened

    @functools.cached_property
    def passages(self) -> pq.ParquetFile:
        """Return the table of passages, which may have been replaced before the first of them is asked for."""
        path = storage.join_paths(self.folder, "passages.parquet")
        opened = tables.open_parquet(path)
        self._check_rows("passages.parquet", opened.metadata.num_rows)
        ((_, (size, _)),) = storage.stat_files(path)
        if size != (expected := self.record["bytes"]["passages.parquet"]):
            raise InputError(
                f"{path}: not the file that was written ({size:,} bytes, {expected:,} expected); if the index was "
                "built anew while it was searched, start this step again, else run `sciqa index`"
            )
        return opened

    @functools.cached_property
    def vectors(self) -> StoredVectors:
        """Return the vectors."""
        with self._opening("vectors.npy"):
            opened = StoredVectors(storage.join_paths(self.folder, "vectors.npy"))
        self._check_rows("vectors.npy", opened.shape[0])
        return opened

    def read_passages(self, rows: np.ndarray) -> list[dict]:
        """Return passages by row number, in that order."""
        groups, places = np.unique(rows // ROW_GROUP, return_inverse=True)
        with self._opening("passages.parquet"):
            table = self.passages.read_row_groups(groups.tolist())
        return table.take(places * ROW_GROUP + rows % ROW_GROUP).to_pylist()

    @contextlib.contextmanager
    def _opening(self, name: str) -> Iterator[None]:
        """Turn errors of storage and of the libraries that read a file into an `InputError`."""
        path = storage.join_paths(self.folder, name)
        try:
            with storage.storage_errors(path, "read"):
                yield
        except (RuntimeError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split())[-200:]
            raise InputError(f"{path}: cannot be read ({reason}); run `sciqa index --verify`") from error

    def _check_rows(self, name: str, rows: int) -> None:
        if rows != (expected := self.record["rows"]):
            path = storage.join_paths(self.folder, name)
            raise InputError(f"{path}: {rows:,} rows, {expected:,} expected; run `sciqa index --verify`")

    def _local_path(self, name: str) -> str:
        """Return the path of a file on this machine; one on other storage is fetched into the cache."""
        path = storage.join_paths(self.folder, name)
        filesystem, inner = storage.resolve_storage(path)
        if isinstance(filesystem, fs.LocalFileSystem):
            return inner
        file = cached_copy(path, self.record["sha256"][name], self.record["bytes"][name], self.cache_bytes)
        weakref.finalize(self, file.close)  # a file that is open is not removed from the cache
        return file.name
