"""Exact search over a sharded index: every group of shards in an actor, the hits merged."""

from dataclasses import dataclass

import numpy as np
import ray

from sciqa import cluster, storage


@dataclass(frozen=True)
class Hits:
    """The best passages of each question, best first; ties in the order of the passages.

    Attributes:
        scores: inner products, float32, shape (questions, k).
        rows: row numbers over the whole index, int64, shape (questions, k).
    """

    scores: np.ndarray
    rows: np.ndarray


def search_flat(index: object, queries: np.ndarray, k: int, offset: int = 0) -> Hits:
    """Return the k best rows of one FAISS index; among equal scores the lowest rows win, at the cut too.

    FAISS leaves it open which of several rows with the k-th score it returns, so more are asked for until the
    last score asked for is below the k-th: only so do shards agree with one index over all rows.

    Args:
        index: a FAISS index by inner product.
        queries: unit vectors, float32, shape (questions, dimension).
        k: hits per question; fewer come back where the index has fewer rows.
        offset: row number of the index's first row.
    """
    k = min(k, index.ntotal)
    wanted = min(k + 1, index.ntotal)
    while True:
        scores, rows = index.search(queries, wanted)
        if wanted == index.ntotal or (scores[:, -1] < scores[:, k - 1]).all():
            return merge_hits([Hits(scores, rows + offset)], k)
        wanted = min(2 * wanted, index.ntotal)


def merge_hits(parts: list[Hits], k: int) -> Hits:
    """Return the k best of several shards' hits, ordered by score and then by row."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    order = np.lexsort((rows, -scores))[:, :k]
    return Hits(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


class ShardGroup:
    """Ray actor that holds some shards of an index and answers for them; restarted from storage when lost.

    Args:
        index: folder of the index.
        shards: records of its manifest, with `offset`, the number of the shard's first row.
        threads: FAISS threads.
    """

    def __init__(self, index: str, shards: list[dict], threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self.indexes, self.tables, self.offsets = [], [], []
        for shard in shards:
            folder = storage.join(index, shard["name"])
            data = np.frombuffer(storage.read_bytes(storage.join(folder, "index.faiss")), np.uint8)
            self.indexes.append(faiss.deserialize_index(data))
            self.tables.append(storage.read_table(storage.join(folder, "passages.parquet")))
            self.offsets.append(shard["offset"])

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the best hits in this group's shards."""
        pairs = zip(self.indexes, self.offsets, strict=True)
        return merge_hits([search_flat(index, queries, k, offset) for index, offset in pairs], k)

    def passages(self, rows: np.ndarray) -> list[dict]:
        """Return the passages of row numbers of this group, in their order."""
        which = np.searchsorted(self.offsets, rows, side="right") - 1
        return [
            self.tables[shard].slice(row - self.offsets[shard], 1).to_pylist()[0]
            for shard, row in zip(which, rows, strict=True)
        ]


class ShardedIndex:
    """All groups of an index, and what they answer together; it travels to any worker.

    Args:
        index: folder of the index.
        shards: the shards of its manifest, in order.
        groups: number of actors to spread them over.
        threads: FAISS threads of each.
    """

    def __init__(self, index: str, shards: list[dict], groups: int, threads: int = 1) -> None:
        starts = np.cumsum([0, *(shard["rows"] for shard in shards)])
        placed = [shard | {"offset": int(start)} for shard, start in zip(shards, starts, strict=False)]
        parts = [part for part in np.array_split(np.arange(len(placed)), groups) if len(part)]
        actor = ray.remote(ShardGroup).options(
            num_cpus=cluster.SEARCH_CPUS, scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=-1
        )
        self.firsts = [placed[part[0]]["offset"] for part in parts]
        self.groups = [actor.remote(index, [placed[number] for number in part], threads) for part in parts]

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the k best hits over all shards."""
        reference = ray.put(queries)
        return merge_hits(ray.get([group.search.remote(reference, k) for group in self.groups]), k)

    def passages(self, rows: np.ndarray) -> list[dict]:
        """Return the passages of row numbers over the whole index, in their order, each asked of its group."""
        which = np.searchsorted(self.firsts, rows, side="right") - 1
        found = [group.passages.remote(rows[which == number]) for number, group in enumerate(self.groups)]
        answers = [iter(passages) for passages in ray.get(found)]
        return [next(answers[number]) for number in which]
