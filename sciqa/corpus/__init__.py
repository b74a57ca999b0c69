"""Corpus room: articles of any source become the passages table."""
