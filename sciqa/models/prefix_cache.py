"""Keys and values of the tokens that all prompts begin with, such as examples: computed once and used for all batches.

A packed row then begins where the prompts differ: each of its tokens sees all of the prefix, and positions count from
its end. The first use compares the scores of one question with those of its whole prompt.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import Cache

from sciqa.models.packing import SHARED_AT_LEAST, PackedRows, packed_prefix_tokens
from sciqa.models.packing_check import PackingCheckedScorer
from sciqa.models.scorer import EncodedForScorer


@dataclass(frozen=True)
class PrefixCache:
    """The tokens of a prefix, and their keys and values in one row."""

    tokens: list[int]
    states: Cache

    def extend(self, rows: PackedRows) -> PackedRows:
        """Return packed rows whose mask and positions count the prefix before each row."""
        seen = torch.ones(*rows.mask.shape[:3], len(self.tokens), dtype=torch.bool)
        positions = None if rows.positions is None else rows.positions + len(self.tokens)
        return replace(rows, mask=torch.cat([seen, rows.mask], dim=-1), positions=positions)

    def repeat(self, rows: int) -> Cache:
        """Return the keys and values for a number of rows; a model appends to them."""
        states = copy.deepcopy(self.states)
        if rows > 1:
            states.batch_repeat_interleave(rows)
        return states

    def begins(self, questions: Sequence[EncodedForScorer]) -> bool:
        """Whether all prompts begin with the prefix, and go on."""
        length = len(self.tokens)
        return all(len(each.prompt) > length and each.prompt[:length] == self.tokens for each in questions)

    def remove(self, questions: Sequence[EncodedForScorer]) -> list[EncodedForScorer]:
        """Return questions whose prompts begin after the prefix."""
        return [replace(each, prompt=each.prompt[len(self.tokens) :]) for each in questions]


class PrefixScorer(PackingCheckedScorer):
    """A scorer that can keep the keys and values of what all prompts begin with."""

    #: What packed rows follow at the moment, if anything.
    prefix: PrefixCache | None = None
    _kept_prefix: PrefixCache | None = None
    _prefix_differs = False

    @property
    def takes_prefix(self) -> bool:
        """Whether packed rows can follow a prefix without a change of their scores by its length."""
        raise NotImplementedError

    def packs(self, question: EncodedForScorer) -> bool:
        """Whether a question is scored in a packed row."""
        raise NotImplementedError

    @contextmanager
    def use_common_prefix(
        self, questions: Sequence[EncodedForScorer], budget: int
    ) -> Iterator[Sequence[EncodedForScorer]]:
        """Score questions after what all their prompts begin with; yield the questions without it, or as they are.

        The keys and values are kept, and computed anew only if later questions begin otherwise, or share
        `SHARED_AT_LEAST` tokens more. Models whose packed rows could change by them score as without a prefix, and so
        are questions scored that are one batch of `budget` tokens.
        """
        prefix = self._find_prefix(questions, budget)
        if prefix is None:
            yield questions
            return
        self.prefix = prefix
        try:
            yield prefix.remove(questions)
        finally:
            self.prefix = None

    def _find_prefix(self, questions: Sequence[EncodedForScorer], budget: int) -> PrefixCache | None:
        if len(questions) < 2 or self._prefix_differs:
            return None
        shared = packed_prefix_tokens(questions)
        if shared < SHARED_AT_LEAST or not self.takes_prefix or not all(map(self.packs, questions)):
            return None
        kept = self._kept_prefix
        if kept and kept.begins(questions) and shared - len(kept.tokens) < SHARED_AT_LEAST:
            return kept
        if self.padded_tokens(questions) <= budget:
            return None
        prefix = self._compute_prefix(questions[0].prompt[:shared], min(questions, key=lambda each: each.length))
        self._kept_prefix, self._prefix_differs = prefix, prefix is None
        return prefix

    def _compute_prefix(self, tokens: list[int], question: EncodedForScorer) -> PrefixCache | None:
        """Return the keys and values of some tokens; None if a question scores otherwise with them."""
        exact = self([question])[0].double()
        whole = next(self.model.parameters()).dtype == torch.float32
        allowed = 1e-4 + 2e-5 * exact.abs() if whole else 0.05 + 0.02 * exact.abs()
        try:
            ids = torch.tensor([tokens], device=self.device)
            states = self.call(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
            self.prefix = prefix = PrefixCache(tokens, states)
            found = self(prefix.remove([question]))[0].double()
        except Exception:  # any error means that the model does not support this
            return None
        finally:
            self.prefix = None
        return prefix if bool(((found - exact).abs() <= allowed).all()) else None
