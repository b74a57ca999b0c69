"""Retrieval room: builds a sharded index of passages, and finds contexts for questions in it."""

from sciqa.retrieval.contexts import retrieve
from sciqa.retrieval.evaluate import evaluate_or_retrieve
from sciqa.retrieval.index import build_index
from sciqa.retrieval.options import EvaluateOptions, FindOptions, IndexOptions, RetrieveOptions

__all__ = [
    "EvaluateOptions",
    "FindOptions",
    "IndexOptions",
    "RetrieveOptions",
    "build_index",
    "evaluate_or_retrieve",
    "retrieve",
]
