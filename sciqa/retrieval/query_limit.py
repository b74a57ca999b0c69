"""Cut questions so that an embedder reads them with their options."""

import re
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING

from sciqa.core.model_files import model_file_sequence_length, model_file_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: More than the tokens that any tokenizer puts around a text. No other token has less than a byte.
AROUND = 16


class QueryLimit:
    """The most tokens that an embedder reads of a query.

    Args:
        model: name of the embedding model.
        prefix: what is put before every query.
    """

    def __init__(self, model: str, prefix: str) -> None:
        self.model, self.prefix, self.tokens = model, prefix, model_file_sequence_length(model)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer."""
        return model_file_tokenizer(self.model)

    def cut(self, prompt: str, end: str) -> tuple[str, bool]:
        """Return a query of a prompt and what follows it, and whether the end of the prompt was cut off to fit it."""
        if self._fits(whole := prompt + end):
            return whole, False
        ends = [found.end() for found in re.finditer(r"\S+", prompt)]
        kept = bisect_left(ends, True, key=lambda at: not self._fits(prompt[:at] + end))
        return prompt[: ends[kept - 1] if kept else 0] + end, True

    def _fits(self, query: str) -> bool:
        whole = self.prefix + query
        if self.tokens is None or len(whole.encode(errors="replace")) + AROUND <= self.tokens:
            return True
        return len(self.tokenizer.encode(whole).ids) <= self.tokens
