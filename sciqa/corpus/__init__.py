"""Corpus room: articles of any source become the passages table."""

from sciqa.corpus.passages import CorpusOptions, build_passages

__all__ = ["CorpusOptions", "build_passages"]
