"""Cut questions so that an embedder reads them with their options."""

import re
from bisect import bisect_left

from sciqa.core.model_files import model_file_sequence_length, tokenizer_of_model_files


class QueryLimit:
    """The most tokens that an embedder reads of a query.

    Args:
        model: name of the embedding model.
        prefix: what is put before every query.
    """

    def __init__(self, model: str, prefix: str) -> None:
        self.prefix, self.tokens = prefix, model_file_sequence_length(model)
        self.tokenizer = tokenizer_of_model_files(model) if self.tokens else None

    def cut(self, prompt: str, end: str) -> tuple[str, bool]:
        """Return a query of a prompt and what follows it, and whether the end of the prompt was cut off to fit it."""
        if self._fits(whole := prompt + end):
            return whole, False
        ends = [found.end() for found in re.finditer(r"\S+", prompt)]
        kept = bisect_left(ends, True, key=lambda at: not self._fits(prompt[:at] + end))
        return prompt[: ends[kept - 1] if kept else 0] + end, True

    def _fits(self, query: str) -> bool:
        if self.tokens is None or self.tokenizer is None:
            return True
        return len(self.tokenizer.encode(self.prefix + query).ids) <= self.tokens
