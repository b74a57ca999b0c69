"""Retrieval room: passages become a sharded index, and questions find their contexts in it."""

from sciqa.retrieval.contexts import RetrieveOptions, retrieve
from sciqa.retrieval.index import IndexOptions, build_index

__all__ = ["IndexOptions", "RetrieveOptions", "build_index", "retrieve"]
