"""BM25 search over the passages of one shard.

Scores are those of Lucene's BM25 (Robertson and Zaragoza 2009; bm25s), with the document frequencies of the shard
itself, as in distributed search engines by default. Terms are English stems, including numbers and single letters.

A shard's index is an Arrow file with a row per term in the order of their hashes: `term` (the hash), `passages` (row
numbers of the passages that hold the term) and `scores` (what the term adds to the score of each). It is memory-mapped:
a search finds its terms by binary search, and reads their postings alone.
"""

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable

import bm25s
import numpy as np
import pyarrow as pa
import Stemmer
from scipy import sparse

TERM = r"(?u)\b\w+\b"
#: The position between a digit and a superscript or a fraction: 10¹⁹ is not 1019.
RAISED = re.compile(r"(?<=[\d₀-₉])(?=[⁰¹²³⁴-⁹¼-¾⅐-⅞])")
#: Passages that are scored at once, over all queries.
SCORED = 1 << 22


def split_bm25_terms(texts: list[str]) -> list[list[str]]:
    """Return the terms of each text; Unicode-compatible texts (NFKC) give the same terms: H₂SO₄ and H2SO4."""
    stemmer = Stemmer.Stemmer("english")
    texts = [text if text.isascii() else _folded(text) for text in texts]
    return bm25s.tokenize(texts, token_pattern=TERM, stemmer=stemmer, return_ids=False, show_progress=False)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", RAISED.sub(" ", text.replace("\xad", "")))


def bm25_term_hashes(terms: Iterable[str]) -> np.ndarray:
    """Return 64-bit hashes of terms. Two of a shard's 80,000 terms share one with a probability below 1e-9."""
    digests = b"".join(hashlib.blake2b(term.encode(), digest_size=8).digest() for term in terms)
    return np.frombuffer(digests, "<u8")


def bm25_file(texts: list[str]) -> bytes:
    """Return the content of the file with the BM25 index of a shard's texts."""
    terms = split_bm25_terms(texts)
    if not any(terms):
        terms[0] = [""]  # no query asks for it, but bm25s needs a term
    known = list({term for text in terms for term in text})
    names, places = np.unique(bm25_term_hashes(known), return_inverse=True)
    numbers = dict(zip(known, places.tolist(), strict=True))
    index = bm25s.BM25()
    index.index(([[numbers[term] for term in text] for text in terms], numbers), show_progress=False)
    starts, rows, scores = (index.scores[name] for name in ("indptr", "indices", "data"))
    lists = [pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(values)) for values in (rows, scores)]
    batch = pa.record_batch([pa.array(names), *lists], names=["term", "passages", "scores"])
    batch = batch.replace_schema_metadata({"passages": str(len(texts))})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Bm25Index:
    """A shard's BM25 index, memory-mapped from a file on this machine of what `bm25_file` returns."""

    def __init__(self, path: str) -> None:
        batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
        rows, scores = batch["passages"], batch["scores"]
        self.terms = batch["term"].to_numpy()
        arrays = (scores.values.to_numpy(), rows.values.to_numpy(), rows.offsets.to_numpy())
        self.passages = int(batch.schema.metadata[b"passages"])
        self.postings = sparse.csr_array(arrays, shape=(len(self.terms), self.passages))

    def scores(self, terms: np.ndarray, starts: np.ndarray) -> sparse.csr_array:
        """Return the scores of the passages that hold a term of a query, shape (queries, passages).

        A score is the sum over the query's terms in their order, in float32; no other posting is read.

        Args:
            terms: hashes of all queries' terms, one query after the other.
            starts: number of the first term of each query, and of all terms.
        """
        places = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
        known = self.terms[places] == terms
        starts = np.append(0, np.cumsum(known))[starts].astype(np.int32)
        asked = np.ones(starts[-1], np.float32), places[known].astype(np.int32), starts
        return sparse.csr_array(asked, shape=(len(starts) - 1, len(self.terms))) @ self.postings


def search_bm25(shards: list[tuple[Bm25Index, int]], queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and rows of the k best passages of each query in several shards; of equal ones the first.

    Args:
        shards: the index of each shard, and the number of its first row.
        queries: texts of the queries.
        k: passages per query.

    Returns:
        Scores, float32, and rows, int64, shape (queries, k); -inf and -1 where fewer passages hold a term.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full(scores.shape, -1, np.int64)
    terms = split_bm25_terms(queries)
    step = max(1, SCORED // max(index.passages for index, _ in shards))
    for first in range(0, len(queries), step):
        asked = terms[first : first + step]
        hashes = bm25_term_hashes(term for query in asked for term in query)
        starts = np.append(0, np.cumsum([len(query) for query in asked]))
        best = _BestPassages(len(asked), k)
        for index, offset in shards:
            best.add(index.scores(hashes, starts), offset)
        number, rank, *found = best.ranked()
        scores[first + number, rank], rows[first + number, rank] = found
    return scores, rows


class _BestPassages:
    """The k best passages of each query among those added, and more, which are dropped from time to time."""

    def __init__(self, queries: int, k: int) -> None:
        self.k, self.least = k, np.full(queries, np.finfo(np.float32).tiny)
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.kept = 0

    def add(self, found: sparse.csr_array, offset: int) -> None:
        if found.nnz > 4 * self.k * len(self.least):  # the k-th best of this shard is a bound for the k-th best of all
            for query in np.flatnonzero(np.diff(found.indptr) > self.k):
                own = found.data[found.indptr[query] : found.indptr[query + 1]]
                self.least[query] = max(self.least[query], np.partition(own, -self.k)[-self.k])
        queries = np.repeat(np.arange(len(self.least)), np.diff(found.indptr))
        (chosen,) = np.nonzero(found.data >= self.least[queries])
        self.parts.append((queries[chosen], found.data[chosen], found.indices[chosen].astype(np.int64) + offset))
        self.kept += len(chosen)
        if self.kept > 4 * self.k * len(self.least):
            queries, rank, scores, rows = self.ranked()
            self.parts, self.kept = [(queries, scores, rows)], len(queries)
            last = rank == self.k - 1
            self.least[queries[last]] = scores[last]

    def ranked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return query, rank, score and row of the best passages, in this order."""
        queries, scores, rows = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        order = np.lexsort((rows, -scores, queries))
        queries, scores, rows = queries[order], scores[order], rows[order]
        ranks = np.arange(len(queries)) - np.searchsorted(queries, queries)
        best = ranks < self.k
        return queries[best], ranks[best], scores[best], rows[best]
