"""BM25 search over the passages of one shard.

Scores are those of Lucene's BM25 (Robertson and Zaragoza 2009; bm25s), with the document frequencies of the shard
itself, as in distributed search engines by default. Terms are English stems, including numbers and single letters.

A shard's index is an Arrow file with a row per term in the order of their hashes: `term` (the hash), `passages` (row
numbers of the passages that hold the term) and `scores` (what the term adds to the score of each). It is memory-mapped:
a search finds its terms by binary search, and reads their postings alone.
"""

import functools
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, pairwise, takewhile

import bm25s
import numpy as np
import pyarrow as pa
import Stemmer
from scipy import sparse

from sciqa.core.errors import InputError
from sciqa.core.hashes import fingerprint

TERM = r"(?u)\b\w+\b"
#: The position between a digit and a superscript or a fraction: 10¹⁹ is not 1019.
RAISED = re.compile(r"(?<=[\d₀-₉])(?=[⁰¹²³⁴-⁹¼-¾⅐-⅞])")
#: Words of many endings, exceptions of stemmers, stop words and signs, by whose terms one way to split is told from
#: another, and the hash of their terms in English stems of PyStemmer 3 without the stop words of bm25s 0.3.
SAMPLE = """
generously communism arsenal skis dying lying news howe atlas cosmos bias andes inning outing herring earring evening
proceed exceed succeed geologist geology analogously apologies archaeology conversational relational valenci hesitanci
digitizer conformabli radicalli vileli predication operator feudalism decisiveness hopefulness callousness formaliti
sensitiviti sensibiliti triplicate formative formalize electriciti electrical hopeful goodness revival allowance
inference airliner gyroscopic adjustable defensible irritant replacement adjustment dependent adoption homologou
effective bowdlerize probate rate cease controlling rolling caresses ponies ties cats feed agreed plastered bled
motoring sing conflated troubled sized hopping tanned falling hissing fizzed failing filing happy sky youth boy
past passed running runner ran easily fairly idly gently ugly early only singly quickly nation's nations' James's
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
was will with H2O CO2 1984 3.14 x² naïve Größe 光合作用 e.g. U.S. mRNA state-of-the-art don't can't
"""
TERMS = "cd157adfc212a04c"
#: Passages that are scored at once; smaller shards are read together.
BLOCK = 1 << 16
#: Share of a block's passages above which a term's scores are laid out for all of them, which adds them sooner.
DENSE = 0.05
#: The smallest score of a passage that holds a term of the query.
LEAST = np.finfo(np.float32).tiny


@functools.cache
def bm25_terms_hash() -> str:
    """Return a hash of the terms of `SAMPLE`, which other stems or stop words change."""
    return fingerprint(split_bm25_terms([SAMPLE]))


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
    batch = batch.replace_schema_metadata({"passages": str(len(texts)), "terms": bm25_terms_hash()})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Bm25Index:
    """A shard's BM25 index, memory-mapped from a file on this machine of what `bm25_file` returns.

    Raises:
        InputError: texts are split into other terms here than where the file was made.
    """

    def __init__(self, path: str) -> None:
        batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
        if batch.schema.metadata.get(b"terms", b"") not in (b"", bm25_terms_hash().encode()):
            raise InputError(
                f"{path}: made with other versions of PyStemmer or bm25s, whose terms differ from those of the "
                "versions here; install those, or run `sciqa index` with these"
            )
        rows, scores = batch["passages"], batch["scores"]
        self.terms = batch["term"].to_numpy()
        arrays = (scores.values.to_numpy(), rows.values.to_numpy(), rows.offsets.to_numpy())
        self.passages = int(batch.schema.metadata[b"passages"])
        self.postings = sparse.csr_array(arrays, shape=(len(self.terms), self.passages))

    def postings_of(self, terms: np.ndarray) -> sparse.csr_array:
        """Return the postings of terms, given by their hashes, shape (terms, passages); no other posting is read."""
        places = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
        known = self.terms[places] == terms
        found = self.postings[places[known]]
        lengths = np.zeros(len(terms), np.int64)
        lengths[known] = np.diff(found.indptr)
        shape = len(terms), self.passages
        starts = np.append(0, lengths.cumsum()).astype(found.indptr.dtype)
        return sparse.csr_array((found.data, found.indices, starts), shape=shape)


def search_bm25(shards: list[tuple[Bm25Index, int]], queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and rows of the k best passages of each query in several shards; of equal ones the first.

    A score is the sum over the query's terms in their order, in float32. What neighbouring queries begin with, such as
    a question with each of its options, is summed once.

    Args:
        shards: the index of each shard, and the number of its first row, in the order of rows.
        queries: texts of the queries.
        k: passages per query.

    Returns:
        Scores, float32, and rows, int64, shape (queries, k); -inf and -1 where fewer passages hold a term.
    """
    terms = split_bm25_terms(queries)
    numbers = {term: number for number, term in enumerate(dict.fromkeys(chain.from_iterable(terms)))}
    hashes, asked = bm25_term_hashes(numbers), [[numbers[term] for term in query] for query in terms]
    groups = list(_group_queries(asked))
    best = [_BestPassages(k) for _ in queries]
    for several in _blocks(shards):
        block = _BlockScores(several, hashes)
        for group, shared in groups:
            common = block.add(np.zeros(block.passages, np.float32), asked[group[0]][:shared])
            for query in group:
                own = asked[query][shared:]
                best[query].add(block.add(common.copy(), own) if own else common, block.rows)
    scores = np.array([each.scores for each in best], np.float32)
    return scores.reshape(-1, k), np.array([each.rows for each in best], np.int64).reshape(-1, k)


def _group_queries(queries: list[list[int]]) -> Iterator[tuple[range, int]]:
    """Yield ranges of queries that begin with the same terms, at least half of each, and the number of these terms."""
    first = 0
    while first < len(queries):
        last, shared = first + 1, len(queries[first])
        while last < len(queries):
            pairs = zip(queries[first][:shared], queries[last], strict=False)
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if 2 * alike < max(len(queries[first]), len(queries[last]), 1):
                break
            last, shared = last + 1, alike
        yield range(first, last), shared
        first = last


def _blocks(shards: list[tuple[Bm25Index, int]]) -> Iterator[list[tuple[Bm25Index, int]]]:
    """Yield neighbouring shards of about `BLOCK` passages together."""
    firsts = np.cumsum([0, *(index.passages for index, _ in shards[:-1])])
    for _, block in groupby(range(len(shards)), lambda shard: firsts[shard] // BLOCK):
        yield [shards[shard] for shard in block]


class _BlockScores:
    """Scores of all passages of some shards, from the postings of the terms of a batch of queries."""

    def __init__(self, shards: list[tuple[Bm25Index, int]], terms: np.ndarray) -> None:
        postings = sparse.hstack([index.postings_of(terms) for index, _ in shards], format="csr")
        self.passages = postings.shape[1]
        self.rows = np.concatenate([np.arange(offset, offset + index.passages) for index, offset in shards])
        self.terms: list[tuple[np.ndarray | slice, np.ndarray]] = []
        for start, end in pairwise(postings.indptr.tolist()):
            held, scores = postings.indices[start:end], postings.data[start:end]
            if end - start > DENSE * self.passages:
                every = np.zeros(self.passages, np.float32)
                every[held] = scores
                self.terms.append((slice(None), every))
            else:
                self.terms.append((held, scores))

    def add(self, total: np.ndarray, terms: list[int]) -> np.ndarray:
        """Add the scores of terms, by number, to those of all passages, and return these."""
        for term in terms:
            held, scores = self.terms[term]
            total[held] += scores
        return total


class _BestPassages:
    """The k best passages of a query among those added, best first."""

    def __init__(self, k: int) -> None:
        self.scores = np.full(k, -np.inf, np.float32)
        self.rows = np.full(k, -1, np.int64)

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """Take the passages that are among the best; `rows` are larger than those of earlier calls."""
        k, least = len(self.rows), max(self.scores[-1], LEAST)
        (places,) = np.nonzero(scores > least if self.rows[-1] >= 0 else scores >= least)
        found = scores[places]
        if len(places) > k:
            best = found >= np.partition(found, -k)[-k]
            places, found = places[best], found[best]
        if len(places):
            scores, rows = np.append(self.scores, found), np.append(self.rows, rows[places])
            order = np.argsort(-scores, kind="stable")[:k]
            self.scores, self.rows = scores[order], rows[order]
