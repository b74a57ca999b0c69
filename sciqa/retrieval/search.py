"""Search a sharded index: each group of shards has an actor, and a tree of tasks merges their hits."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import ray

from sciqa.core import cluster, storage, worker_loss
from sciqa.retrieval.index import MANIFEST
from sciqa.retrieval.index_listing import IndexListing
from sciqa.retrieval.options import CACHE_BYTES
from sciqa.retrieval.search_parameters import check_search_parameters
from sciqa.retrieval.shard_files import ShardFiles

if TYPE_CHECKING:
    import faiss
    from ray.actor import ActorHandle

    from sciqa.retrieval.bm25 import Bm25Index


#: Bytes of memory that a search actor requests from Ray: what its process takes, and a batch of questions. The pages of
#: mapped files are not counted, since the system takes them back when it needs memory.
SEARCH_MEMORY = 500_000_000
#: Maximum number of groups, or of shards of a group, whose hits are merged at once.
FAN_IN = 8
#: Upper bound of the rounding error of the product or distance of two unit vectors in float32.
ROUNDING = 1e-5


@dataclass(frozen=True)
class SearchHits:
    """The best passages of each question, best first; ties are in passage order.

    Attributes:
        scores: float32, shape (questions, k), higher is better; -inf if there are fewer than k.
        rows: row numbers over the whole index, int64, shape (questions, k); -1 if there are fewer than k.
    """

    scores: np.ndarray
    rows: np.ndarray


def merge_search_hits(parts: list[SearchHits], k: int) -> SearchHits:
    """Return the k best of several shards' hits, ordered by score and then by row."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    order = np.lexsort((rows, -scores))[:, :k]
    return SearchHits(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


def fuse_search_hits(lists: list[SearchHits], k: int) -> SearchHits:
    """Return the k best rows of several rankings by reciprocal-rank fusion, with their fused scores.

    A row's score is the sum of 1 / (60 + rank) over the rankings that hold it (Cormack, Clarke and Büttcher 2009),
    rounded once, so that the order of the rankings changes nothing.
    """
    k = min(k, sum(hits.rows.shape[1] for hits in lists))
    scores = np.full((len(lists[0].rows), k), -np.inf, np.float32)
    rows = np.full(scores.shape, -1, np.int64)
    for question in range(len(scores)):
        fused: dict[int, list[float]] = {}
        for hits in lists:
            for rank, row in enumerate(hits.rows[question].tolist(), 1):
                if row >= 0:
                    fused.setdefault(row, []).append(1 / (60 + rank))
        summed = ((row, math.fsum(parts)) for row, parts in fused.items())
        best = sorted(summed, key=lambda pair: (-pair[1], pair[0]))[:k]
        if best:
            rows[question, : len(best)], scores[question, : len(best)] = zip(*best, strict=True)
    return SearchHits(scores, rows)


def search_flat(index: "faiss.Index", queries: np.ndarray, k: int, offset: int = 0) -> SearchHits:
    """Return the k best rows of one flat FAISS index; among equal scores the lowest rows win, also at the cut-off.

    FAISS does not specify which of several rows with the k-th score it returns, and its rounding depends on the number
    of questions per call. So this function requests more rows, until the last one is below the k-th by more than the
    rounding error, and scores each row again on its own. Only then do shards agree with one index over all rows, and a
    batch of questions with each question alone.

    Args:
        index: a flat FAISS index.
        queries: unit vectors, float32, shape (questions, dimension).
        k: hits per question; fewer are returned if the index has fewer rows.
        offset: row number of the index's first row.
    """
    k = min(k, index.ntotal)
    wanted = min(k + 8, index.ntotal)
    while True:
        hits = search_any(index, queries, wanted)
        best = merge_search_hits([SearchHits(_compare(index, queries, hits.rows), hits.rows + offset)], k)
        if wanted == index.ntotal or (hits.scores[:, -1] < best.scores[:, -1] - ROUNDING).all():
            return best
        wanted = min(2 * wanted, index.ntotal)


def _compare(index: "faiss.Index", queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the scores of rows of a flat FAISS index, shape (questions, rows), each computed on its own."""
    import faiss

    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
    scores = np.empty(rows.shape, np.float32)
    given, made, asked = map(faiss.swig_ptr, (queries, scores, rows))
    index.compute_distance_subset(len(queries), given, rows.shape[1], made, asked)  # type: ignore[attr-defined]
    return -scores if index.metric_type == faiss.METRIC_L2 else scores


def search_any(index: "faiss.Index", queries: np.ndarray, k: int, offset: int = 0) -> SearchHits:
    """Return at most k rows that FAISS finds, with the scores of its own codes; L2 distances are negated."""
    import faiss

    scores, rows = index.search(queries, min(k, index.ntotal))
    if index.metric_type == faiss.METRIC_L2:
        scores = -scores
    return SearchHits(np.where(rows < 0, -np.inf, scores), np.where(rows < 0, -1, rows + offset))


class SearchActor:
    """Searches some shards of an index; as a Ray actor, it is restarted from storage when lost.

    FAISS and BM25 files are memory-mapped, those on object storage from the machine's cache, and vectors and passages
    are read on demand, so that a group needs little more memory than its searches touch.

    Args:
        index: folder of the index.
        shards: shard records of its manifest, with `offset`, the number of the shard's first row.
        exact: whether the FAISS files are flat.
        parameters: FAISS search parameters, such as `nprobe=32`.
        cache_bytes: most bytes of files from object storage in the machine's cache.

    Raises:
        InputError: a file that is not there, or is not the one that its record describes; see `IndexListing`.
    """

    def __init__(self, index: str, shards: list[dict], exact: bool, parameters: str | None, cache_bytes: int) -> None:
        import faiss

        if "://" not in index:  # a node may have a copy of its own
            IndexListing(index, MANIFEST).check(shards)
        faiss.omp_set_num_threads(1)
        self.exact = exact
        self.offsets = [shard["offset"] for shard in shards]
        self.shards = [ShardFiles(storage.join_paths(index, shard["name"]), shard, cache_bytes) for shard in shards]
        self.indexes = storage.map_storage(lambda shard: shard.faiss, self.shards)
        if parameters:
            for opened in self.indexes:
                faiss.ParameterSpace().set_index_parameters(opened, parameters)  # type: ignore[arg-type]

    def search(self, queries: np.ndarray, k: int) -> SearchHits:
        """Return the best hits in this group's shards."""
        search = search_flat if self.exact else search_any
        hits: list[SearchHits] = []
        for index, offset in zip(self.indexes, self.offsets, strict=True):
            hits.append(search(index, queries, k, offset))
            if len(hits) > FAN_IN:
                hits = [merge_search_hits(hits, k)]
        return merge_search_hits(hits, k)

    def search_words(self, queries: list[str], k: int) -> SearchHits:
        """Return the best hits of each query by BM25 in this group's shards."""
        from sciqa.retrieval.bm25 import search_bm25

        return SearchHits(*search_bm25(self._words, queries, k))

    def score(self, queries: np.ndarray, questions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the inner product of each pair of a query (by number) and the stored vector of a row of this group."""
        scores = np.empty(len(rows), np.float32)

        def score(shard: ShardFiles, places: np.ndarray, inner: np.ndarray) -> None:
            scores[places] = np.einsum("qd,qd->q", shard.vectors.read(inner), queries[questions[places]])

        storage.map_storage(lambda part: score(*part), self._by_shard(rows))
        return scores

    def passages(self, rows: np.ndarray) -> list[dict]:
        """Return the passages with the given row numbers of this group, in that order."""
        parts = self._by_shard(rows)
        read = storage.map_storage(lambda part: part[0].read_passages(part[2]), parts)
        found = [passage for some in read for passage in some]
        return [found[at] for at in np.argsort([place for _, places, _ in parts for place in places.tolist()])]

    @functools.cached_property
    def _words(self) -> "list[tuple[Bm25Index, int]]":
        return list(zip(storage.map_storage(lambda shard: shard.words, self.shards), self.offsets, strict=True))

    def _by_shard(self, rows: np.ndarray) -> list[tuple[ShardFiles, np.ndarray, np.ndarray]]:
        """Return each shard that has some of the rows, their places among all, and their numbers within the shard."""
        which = np.searchsorted(self.offsets, rows, side="right") - 1
        inner, order = rows - np.array(self.offsets)[which], np.argsort(which, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
        return [(self.shards[which[places[0]]], places, inner[places]) for places in parts if len(places)]


def count_search_rows(manifest: dict) -> int:
    """Return the number of passages of an index."""
    return sum(shard["rows"] for shard in manifest["shards"])


def _placed(manifest: dict) -> list[dict]:
    """Return the records of an index's shards with `offset`, the number of each shard's first row."""
    starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])
    return [shard | {"offset": int(start)} for shard, start in zip(manifest["shards"], starts, strict=False)]


def _score_again(hits: SearchHits, k: int, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> SearchHits:
    """Return the k best candidates by a new score, which `score` computes from question numbers and row numbers."""
    questions, places = np.nonzero(hits.rows >= 0)
    scores = np.full(hits.scores.shape, -np.inf, np.float32)
    scores[questions, places] = score(questions, hits.rows[questions, places])
    return merge_search_hits([SearchHits(scores, hits.rows)], k)


class LocalSearch:
    """All shards of an index in this process, without Ray: starting Ray takes longer than answering a question.

    The results are those of `ShardedSearch`. FAISS has one thread: FAISS and PyTorch each bring an OpenMP runtime, and
    with one thread that of FAISS starts none beside PyTorch's. Files are memory-mapped. It can be sent to any worker,
    which opens the files itself.

    Args:
        index: folder of the index.
        manifest: its manifest.
        parameters: FAISS search parameters.
        candidates: hits that are scored again with the stored vectors, if the FAISS files are not exact.
        cache_bytes: most bytes of files from object storage in the machine's cache.
    """

    def __init__(
        self,
        index: str,
        manifest: dict,
        parameters: str | None = None,
        candidates: int = 100,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        check_search_parameters(manifest, parameters)
        self.exact, self.candidates, self.rows = manifest["factory"] == "Flat", candidates, count_search_rows(manifest)
        self.arguments = (index, manifest, parameters, candidates, cache_bytes)
        self.group = SearchActor(index, _placed(manifest), self.exact, parameters, cache_bytes)
        self.search_words, self.passages = self.group.search_words, self.group.passages

    def __reduce__(self) -> tuple:
        """Return how `pickle` makes a copy: by opening the files again."""
        return LocalSearch, self.arguments

    def search(self, queries: np.ndarray, k: int) -> SearchHits:
        """See `ShardedSearch.search`."""
        if self.exact:
            return self.group.search(queries, k)
        hits = self.group.search(queries, max(k, self.candidates))
        return _score_again(hits, k, functools.partial(self.group.score, queries))


class ShardedSearch:
    """Searches all groups of an index, which are Ray actors; it can be sent to any worker.

    Its shards are spread over `groups` actors; the other arguments are those of `LocalSearch`.

    Raises:
        InputError: no node has the memory of an actor, or FAISS does not take the parameters.
    """

    def __init__(
        self,
        index: str,
        manifest: dict,
        groups: int,
        parameters: str | None = None,
        candidates: int = 100,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        check_search_parameters(manifest, parameters)
        placed = _placed(manifest)
        parts = [part for part in np.array_split(np.arange(len(placed)), groups) if len(part)]
        limits = {"max_restarts": worker_loss.MOST, "max_task_retries": worker_loss.MOST}
        cluster.wait_for_cluster_room({"CPU": cluster.SEARCH_CPUS, "memory": SEARCH_MEMORY})
        needs = {"num_cpus": cluster.SEARCH_CPUS, "memory": SEARCH_MEMORY, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(SearchActor).options(**needs, **limits)
        self.exact, self.candidates, self.rows = manifest["factory"] == "Flat", candidates, count_search_rows(manifest)
        self.firsts = [placed[part[0]]["offset"] for part in parts]
        start, how = cast("Callable[..., ActorHandle]", actor.remote), (self.exact, parameters, cache_bytes)
        self.groups = [start(index, [placed[number] for number in part], *how) for part in parts]

    def close(self) -> None:
        """End the actors and give their CPUs back."""
        for group in self.groups:
            ray.kill(group)

    def search(self, queries: np.ndarray, k: int) -> SearchHits:
        """Return the k best hits over all shards for unit vectors, float32, shape (questions, dimension)."""
        reference = ray.put(queries)
        if self.exact:
            return self._search(reference, k)
        wanted = max(k, self.candidates)
        return _score_again(self._search(reference, wanted), k, functools.partial(self._score, reference))

    def search_words(self, queries: list[str], k: int) -> SearchHits:
        """Return the k best hits of each query by BM25 over all shards."""
        return _merge_tree([group.search_words.remote(queries, k) for group in self.groups], k)

    def passages(self, rows: np.ndarray) -> list[dict]:
        """Return the passages with the given row numbers of the whole index, in that order, each from its group."""
        which = self._group_of(rows)
        found = [group.passages.remote(rows[which == number]) for number, group in enumerate(self.groups)]
        answers: list[Iterator[dict]] = list(map(iter, ray.get(found)))
        return [next(answers[number]) for number in which]

    def _search(self, queries: ray.ObjectRef, k: int) -> SearchHits:
        return _merge_tree([group.search.remote(queries, k) for group in self.groups], k)

    def _score(self, queries: ray.ObjectRef, questions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        which = self._group_of(rows)
        chosen = [which == number for number in range(len(self.groups))]
        asked = [
            group.score.remote(queries, questions[mask], rows[mask])
            for group, mask in zip(self.groups, chosen, strict=True)
        ]
        scores = np.empty(len(rows), np.float32)
        answered: list[np.ndarray] = ray.get(asked)
        for mask, found in zip(chosen, answered, strict=True):
            scores[mask] = found
        return scores

    def _group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.firsts, rows, side="right") - 1


@ray.remote(num_cpus=0)
def _merge_groups(k: int, *hits: SearchHits) -> SearchHits:
    return merge_search_hits(list(hits), k)


def _merge_tree(parts: list[ray.ObjectRef], k: int) -> SearchHits:
    """Merge the hits of groups, `FAN_IN` at a time, so that no process receives the hits of all groups."""
    while len(parts) > FAN_IN:
        parts = [_merge_groups.remote(k, *parts[at : at + FAN_IN]) for at in range(0, len(parts), FAN_IN)]
    return merge_search_hits(ray.get(parts), k)
