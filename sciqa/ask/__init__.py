"""Ask room: one question ranked, or answered in words with citations."""

from sciqa.ask.ask import AskOptions, ask

__all__ = ["AskOptions", "ask"]
