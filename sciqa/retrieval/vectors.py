"""Read a shard's stored vectors from any storage, by row number."""

import io

import numpy as np
from pyarrow import fs

from sciqa.core import storage
from sciqa.core.errors import InputError

#: Bytes between two vectors up to which one request for both takes less time than two.
HOLE = 1 << 16
#: Bytes of a request: what is held of a file while vectors are read.
REQUEST = 1 << 22


class StoredVectors:
    """Rows of an `.npy` file of vectors: memory-mapped on this machine, read on demand from other storage."""

    def __init__(self, path: str) -> None:
        self.path = path
        filesystem, inner = storage.resolve_storage(path)
        self.mapped = np.load(inner, mmap_mode="r") if isinstance(filesystem, fs.LocalFileSystem) else None
        if self.mapped is not None:
            self.shape = self.mapped.shape
            return
        self.file = filesystem.open_input_file(inner)
        head = io.BytesIO(self.file.read_at(4096, 0))
        np.lib.format.read_magic(head)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(head)
        self.start, self.width = head.tell(), self.shape[1] * self.dtype.itemsize

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return vectors by row number, float32, shape (rows, dimension); near ones are read by one request."""
        if self.mapped is not None:
            return self.mapped[rows].astype(np.float32)
        wanted, places = np.unique(rows, return_inverse=True)
        at = wanted * self.width
        ends = np.flatnonzero((np.diff(at) > HOLE) | (np.diff(at // REQUEST) > 0)) + 1
        vectors: np.ndarray = np.concatenate(storage.map_storage(self._read_range, np.split(wanted, ends)))
        return vectors.astype(np.float32)[places]

    def _read_range(self, rows: np.ndarray) -> np.ndarray:
        first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
        with storage.storage_errors(self.path, "read"):
            data = self.file.read_at(count * self.width, self.start + first * self.width)
        if len(data) < count * self.width:
            raise InputError(f"{self.path}: cut short; run `sciqa index --verify`, which builds that shard again")
        return np.frombuffer(data, self.dtype).reshape(count, -1)[rows - first]
