"""sciqa: ranked answers to science exams, by retrieval and language models, on Ray."""

from importlib.metadata import version

__version__ = version("sciqa")
