"""Retrieval room: passages become a sharded index, and questions find their contexts in it."""

from sciqa.retrieval.contexts import FindOptions, RetrieveOptions, retrieve
from sciqa.retrieval.evaluate import EvaluateOptions, retrieve_or_evaluate
from sciqa.retrieval.index import IndexOptions, build_index

__all__ = [
    "EvaluateOptions",
    "FindOptions",
    "IndexOptions",
    "RetrieveOptions",
    "build_index",
    "retrieve",
    "retrieve_or_evaluate",
]
