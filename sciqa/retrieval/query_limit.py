"""Cut questions so that an embedder reads them with their options."""

import re
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING

from sciqa.core.model_files import find_model, model_file_tokenizer
from sciqa.retrieval.embedder import Embedder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: More than the tokens that any tokenizer puts around a text. No other token has less than a byte.
AROUND = 16
#: Most characters of a word; what is longer, as sentences of scripts without spaces, is cut anywhere.
LONGEST_WORD = 40


class QueryLimit:
    """The most tokens that an embedder reads of a query.

    Args:
        embedder: the embedding model.
        prefix: what is put before every query.
    """

    def __init__(self, embedder: Embedder, prefix: str) -> None:
        self.embedder, self.prefix, self.tokens = embedder, prefix, embedder.longest

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer."""
        tokenizer = model_file_tokenizer(self.embedder.model)
        find_model(self.embedder.model, self.embedder.revision)
        return tokenizer

    def cut(self, prompt: str, end: str) -> tuple[str, bool]:
        """Return a query of a prompt and what follows it, and whether the end of the prompt was cut off to fit it.

        It is cut behind a word, or within one of more than `LONGEST_WORD` characters or the first.
        """
        if self.fits(whole := prompt + end):
            return whole, False

        def exceeds(at: int) -> bool:
            return not self.fits(prompt[:at] + end)

        words = [found.span() for found in re.finditer(r"\S+", prompt)]
        kept = bisect_left(words, True, key=lambda word: exceeds(word[1]))
        at = words[kept - 1][1] if kept else 0
        first, last = words[kept] if kept < len(words) else (at, at)
        if not kept or last - first > LONGEST_WORD:
            within = bisect_left(range(first + 1, last + 1), True, key=exceeds)
            at = first + within if within else at
        return prompt[:at] + end, True

    def fits(self, query: str) -> bool:
        """Whether the embedder reads all of a query."""
        whole = self.prefix + query
        if self.tokens is None or len(whole.encode(errors="replace")) + AROUND <= self.tokens:
            return True
        return len(self.tokenizer.encode(whole).ids) <= self.tokens
