"""Decoding constrained to JSON: a model can write nothing but an object that fits a schema (the library llguidance)."""

from collections.abc import Sequence
from typing import cast

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import LogitsProcessor

from sciqa.core.errors import InputError
from sciqa.models.causal import CausalScorer
from sciqa.models.decoding import decoding_end_tokens


def constraint_tokenizer(scorer: CausalScorer) -> LLTokenizer:
    """Return a model's tokenizer for `JsonConstraint`.

    Raises:
        InputError: it is none of the library `tokenizers`.
    """
    try:
        return llguidance.hf.from_tokenizer(scorer.tokenizer, eos_token=decoding_end_tokens(scorer))  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(
            f"{scorer.tokenizer.name_or_path}: its tokenizer cannot be limited to JSON ({error}); serve the model, and "
            "pass --engine openai"
        ) from error


class JsonConstraint(LogitsProcessor):
    """Leaves each row only the tokens that its schema allows next; of a whole object, only those that end the text.

    The tokenizer is the result of `constraint_tokenizer`.

    Raises:
        ValueError: a schema that llguidance does not support.
    """

    def __init__(self, tokenizer: LLTokenizer, schemas: Sequence[dict]) -> None:
        self.matchers = [LLMatcher(tokenizer, _grammar(schema)) for schema in schemas]
        self.mask = llguidance.numpy.allocate_token_bitmask(len(schemas), tokenizer.vocab_size)
        self.begun = False
        self._check()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores, shape (rows, vocabulary), of which those of other tokens are minus infinity."""
        for row, matcher in enumerate(self.matchers):
            if self.begun and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            llguidance.numpy.fill_next_token_bitmask(matcher, self.mask, row)
        self.begun = True
        self._check()
        bits = np.unpackbits(self.mask.view(np.uint8), axis=1, count=scores.shape[1], bitorder="little")
        return cast("torch.FloatTensor", scores.masked_fill(torch.from_numpy(bits == 0).to(scores.device), -torch.inf))

    def _check(self) -> None:
        for matcher in self.matchers:
            if matcher.is_error():
                raise ValueError(matcher.get_error())


def _grammar(schema: dict) -> str:
    """Return a schema as llguidance's grammar; no white space but after a comma and a colon, where it could go on."""
    return LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
