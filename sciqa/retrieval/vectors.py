"""Read a shard's vectors, from `.npy` and FAISS files on any storage."""

import io
from typing import TYPE_CHECKING

import numpy as np

from sciqa.core import storage

if TYPE_CHECKING:
    import faiss


class StoredVectors:
    """Rows of an `.npy` file of vectors, read on demand from any storage."""

    def __init__(self, path: str) -> None:
        filesystem, inner = storage.resolve(path)
        self.file = filesystem.open_input_file(inner)
        head = io.BytesIO(self.file.read_at(4096, 0))
        np.lib.format.read_magic(head)
        (_, self.dimension), _, self.dtype = np.lib.format.read_array_header_1_0(head)
        self.start, self.width = head.tell(), self.dimension * self.dtype.itemsize

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return vectors by row number, float32, shape (rows, dimension)."""
        wanted, places = np.unique(rows, return_inverse=True)
        data = b"".join(self.file.read_at(self.width, self.start + self.width * int(row)) for row in wanted)
        vectors = np.frombuffer(data, self.dtype).reshape(-1, self.dimension)
        return vectors.astype(np.float32)[places]


def open_faiss(path: str) -> "faiss.Index":
    """Open a FAISS file, memory-mapped if it is on this machine and FAISS supports it."""
    import faiss

    if "://" in path:
        return faiss.deserialize_index(np.frombuffer(storage.read_bytes(path), np.uint8))
    return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
