"""The `serve` step: an HTTP server that answers questions from a run's index and reader, on Ray Serve."""

from sciqa.serve.options import ServeOptions
from sciqa.serve.serve import serve

__all__ = ["ServeOptions", "serve"]
