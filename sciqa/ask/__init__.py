"""The `ask` step: rank one question's options, or answer it in words with citations."""

from sciqa.ask.ask import ask
from sciqa.ask.options import AskOptions

__all__ = ["AskOptions", "ask"]
