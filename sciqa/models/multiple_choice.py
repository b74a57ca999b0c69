"""Multiple-choice encoders (DeBERTa, BERT, RoBERTa, Electra, …): a row per option, a head that scores each row."""

from collections.abc import Sequence

import torch
from transformers import DataCollatorForMultipleChoice

from sciqa.exam.questions import options_of
from sciqa.models.scorer import Encoded, Scorer, check_tokens, too_long

#: Rows are padded to a multiple of this many tokens, which tensor cores want.
PAD_TO_MULTIPLE_OF = 8


class MultipleChoiceScorer(Scorer):
    """Scores rows `[CLS] context [SEP] prompt option [SEP]`; questions may have unlike numbers of options."""

    auto_class = "AutoModelForMultipleChoice"

    def encode(self, question: dict, context: str) -> Encoded:
        """See `Scorer.encode`."""
        options = options_of(question)
        check_tokens(question, options, self.tokenizer(list(options.values()), add_special_tokens=False)["input_ids"])
        asked = [f"{question['prompt']} {option}" for option in options.values()]
        limit = min(self.limit, self.tokenizer.model_max_length)
        bare = max(map(len, self.tokenizer(asked)["input_ids"]))
        if bare + 1 > limit:
            raise too_long(question, bare, limit)
        if context:
            pairs = self.tokenizer([context] * len(asked), asked)["input_ids"]
            cut = max(map(len, pairs)) > limit
            if cut:
                pairs = self.tokenizer([context] * len(asked), asked, truncation="only_first", max_length=limit)[
                    "input_ids"
                ]
            return Encoded([], pairs, [], cut=cut)
        return Encoded([], self.tokenizer(asked)["input_ids"], [])

    def padded_tokens(self, batch: Sequence[Encoded]) -> int:
        """See `Scorer.padded_tokens`."""
        longest = max(len(option) for question in batch for option in question.options)
        choices = max(len(question.options) for question in batch)  # those with fewer are filled
        return len(batch) * choices * -(-longest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF

    def forward(self, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        choices = max(len(question.options) for question in batch)
        features = []
        for question in batch:
            # A question with fewer options than others of its batch is filled with copies, dropped again below.
            rows = question.options + [question.options[0]] * (choices - len(question.options))
            features.append(self._features(rows) | {"label": 0})
        collate = DataCollatorForMultipleChoice(self.tokenizer, pad_to_multiple_of=PAD_TO_MULTIPLE_OF)
        inputs = {name: value.to(self.device) for name, value in collate(features).items() if name != "labels"}
        logits = self.model(**inputs).logits
        return [row[: len(question.options)].float() for row, question in zip(logits, batch, strict=True)]

    def _features(self, rows: list[list[int]]) -> dict[str, list[list[int]]]:
        features = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if "token_type_ids" in self.tokenizer.model_input_names:
            features["token_type_ids"] = [self._segments(row) for row in rows]
        return features

    def _segments(self, row: list[int]) -> list[int]:
        """Return 0 up to the first separator and 1 after it, as BERT marks the second of two texts."""
        first = row.index(self.tokenizer.sep_token_id) + 1
        return [0] * first + [1] * (len(row) - first)
