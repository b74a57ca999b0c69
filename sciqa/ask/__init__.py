"""Ask room: one question ranked, or answered in words with citations."""

from sciqa.ask.ask import ask
from sciqa.ask.options import AskOptions

__all__ = ["AskOptions", "ask"]
