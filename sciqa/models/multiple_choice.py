"""Multiple-choice encoders (DeBERTa, BERT, RoBERTa, Electra, …): a row per option, a head that scores each row."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from sciqa.exam.answer_options import answer_options_of
from sciqa.models.padding import PaddedScorer, padded
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer, check_scorer_option, too_long_for_scorer

#: The length of padded rows is a multiple of this many tokens, which suits tensor cores.
PAD_TO_MULTIPLE_OF = 8


class MultipleChoiceScorer(PaddedScorer):
    """Scores rows `[CLS] context [SEP] prompt option [SEP]`; questions may differ in their number of options."""

    auto_class = "AutoModelForMultipleChoice"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, style: PromptFormat) -> None:
        super().__init__(model, tokenizer, style)
        if tokenizer is not None:
            tokenizer.truncation_side = "right"  # of a context, whose end is cut

    def encode(self, question: dict, context: str) -> EncodedForScorer:
        """See `Scorer.encode`."""
        options = answer_options_of(question)
        check_scorer_option(
            question, options, self._tokens(list(options.values()), add_special_tokens=False)["input_ids"]
        )
        asked = [f"{question['prompt']} {option}" for option in options.values()]
        limit = min(self.limit, self.tokenizer.model_max_length)
        alone = self._rows("", asked)
        if (longest := _longest(alone)) > limit:
            raise too_long_for_scorer(question, longest, limit)
        if not context:
            return alone
        both = self._rows(context, asked)
        if _longest(both) <= limit:
            return both
        if _longest(self._pairs("", asked)) >= limit:  # no room for any context beside its separators
            return replace(alone, cut=True, kept=0)
        return self._cut_pairs(context, asked, limit)

    def _rows(self, context: str, asked: list[str]) -> EncodedForScorer:
        # Longformer's head needs the separators of two texts in every row.
        if context or self.model.config.model_type == "longformer":
            return self._pairs(context, asked)
        return _encoded(self._tokens(asked))

    def _pairs(self, context: str, asked: list[str]) -> EncodedForScorer:
        return _encoded(self._tokens([context] * len(asked), asked))

    def _cut_pairs(self, context: str, asked: list[str], limit: int) -> EncodedForScorer:
        """Encode rows of at most `limit` tokens, the context cut at its end.

        `kept` is what the row with the shortest option has of the context; a tokenizer without offsets does not say.
        """
        offsets = {"return_offsets_mapping": True} if self.tokenizer.is_fast else {}
        found = self._tokens([context] * len(asked), asked, truncation="only_first", max_length=limit, **offsets)
        ends = [
            end
            for row, spans in enumerate(found.get("offset_mapping", ()))
            for (_, end), part in zip(spans, found.sequence_ids(row), strict=True)
            if part == 0
        ]
        return replace(_encoded(found), cut=True, kept=max(ends, default=None))

    def _tokens(self, *texts: list[str], **how: object) -> BatchEncoding:
        """Tokenise texts; a `[SEP]` in them is read as text, not as a separator."""
        return self.tokenizer(*texts, split_special_tokens=True, **how)

    def padded_tokens(self, batch: Sequence[EncodedForScorer]) -> int:
        """See `Scorer.padded_tokens`."""
        lengths = [len(row) for question in batch for row in question.options]
        return sum(len(group) * self._width([lengths[number] for number in group]) for group in self.groups(lengths))

    def _width(self, lengths: list[int]) -> int:
        """Return the row length of a batch in tokens, padding included, within the model's positions."""
        longest = max(lengths)
        if self.layout != "padded":
            return longest
        return max(longest, min(-(-longest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF, self.positions))

    def forward(self, batch: Sequence[EncodedForScorer]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        rows = [row for question in batch for row in question.options]
        types = [row for question in batch for row in question.segments or []]
        scores: dict[int, torch.Tensor] = {}
        for numbers in self.groups([len(row) for row in rows]):
            self.reset()
            segments = [types[number] for number in numbers] if types else None
            inputs = self._inputs([rows[number] for number in numbers], segments)
            scores |= zip(numbers, self.model(**inputs).logits.flatten().float(), strict=True)
        in_order = torch.stack([scores[number] for number in range(len(rows))])
        return list(in_order.split([len(question.options) for question in batch]))

    def _inputs(self, rows: list[list[int]], types: list[list[int]] | None) -> dict[str, torch.Tensor]:
        """Return model inputs of shape (rows, 1, tokens): each row is the only choice of a question."""
        width = self._width([len(row) for row in rows])
        side = self.tokenizer.padding_side
        padding = self.tokenizer.pad_token_id or 0
        given = {
            "input_ids": padded(rows, padding, width, side),
            "attention_mask": padded([[1] * len(row) for row in rows], 0, width, side),
        }
        known = getattr(self.model.config, "type_vocab_size", None)
        if types is not None and (known is None or max(map(max, types)) < known):
            given["token_type_ids"] = padded(types, self.tokenizer.pad_token_type_id, width, side)
        return {name: value[:, None].to(self.device) for name, value in given.items() if name in self.takes}


def _encoded(found: BatchEncoding) -> EncodedForScorer:
    """Convert the tokenizer's output for the options of a question."""
    return EncodedForScorer([], found["input_ids"], [], segments=found.get("token_type_ids"))


def _longest(encoded: EncodedForScorer) -> int:
    return max(map(len, encoded.options))
