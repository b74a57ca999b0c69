"""BM25 search over the passages of one shard.

Scores are those of Lucene's BM25 (Robertson and Zaragoza 2009; bm25s), with the document frequencies of the shard
itself, as in distributed search engines by default. Terms are English stems, including numbers and single letters.
"""

import re
import unicodedata
from pathlib import Path

import bm25s
import numpy as np
import Stemmer

TERM = r"(?u)\b\w+\b"
#: The position between a digit and a superscript or a fraction: 10¹⁹ is not 1019.
RAISED = re.compile(r"(?<=[\d₀-₉])(?=[⁰¹²³⁴-⁹¼-¾⅐-⅞])")


def split_bm25_terms(texts: list[str]) -> list[list[str]]:
    """Return the terms of each text; Unicode-compatible texts (NFKC) give the same terms: H₂SO₄ and H2SO4."""
    stemmer = Stemmer.Stemmer("english")
    texts = [text if text.isascii() else _folded(text) for text in texts]
    return bm25s.tokenize(texts, token_pattern=TERM, stemmer=stemmer, return_ids=False, show_progress=False)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", RAISED.sub(" ", text.replace("\xad", "")))


def write_bm25(folder: Path, texts: list[str]) -> None:
    """Write the BM25 index of a shard's texts into a folder."""
    terms = split_bm25_terms(texts)
    numbers = {term: number for number, term in enumerate(sorted({term for text in terms for term in text}))}
    index = bm25s.BM25()
    index.index(([[numbers[term] for term in text] for text in terms], numbers), show_progress=False)
    index.save(folder, show_progress=False)


class Bm25Index:
    """A shard's BM25 index; its postings are memory-mapped from the folder that `write_bm25` wrote."""

    def __init__(self, folder: Path) -> None:
        self.index = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def search(self, terms: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows of the k best passages that contain a term, or fewer; of equal ones the first."""
        known = [term for term in terms if term in self.index.vocab_dict]
        scores = self.index.get_scores(known) if known else np.zeros(0, np.float32)
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0
        rows = np.flatnonzero((scores > 0) & (scores >= least))
        rows = rows[np.lexsort((rows, -scores[rows]))[:k]]
        return scores[rows], rows
