"""Encoder-decoder models (T5, Flan-T5): the encoder reads context and question once, the decoder scores options."""

from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutput

from sciqa.errors import InputError
from sciqa.exam.questions import options_of
from sciqa.models.scorer import Encoded, Scorer, check_tokens, divisors, prompt_text

#: Label that the loss leaves out.
IGNORED = -100


class Seq2SeqScorer(Scorer):
    """Scores options by the decoder's log-likelihood of their text, or letter, with the end token."""

    auto_class = "AutoModelForSeq2SeqLM"

    def encode(self, question: dict, context: str) -> Encoded:
        """See `Scorer.encode`."""
        if self.style.completion == "yes":
            raise InputError("--completion yes: for causal models only; use text or letter")
        by_letter = options_of(question)
        options = list(by_letter if self.style.completion == "letter" else by_letter.values())
        tokens = self.tokenizer(options)["input_ids"]
        check_tokens(
            question, by_letter, self.tokenizer(list(by_letter.values()), add_special_tokens=False)["input_ids"]
        )

        def encode(given: str) -> Encoded:
            prompt = self.tokenizer(prompt_text(question, given, self.style.completion))["input_ids"]
            return Encoded(prompt, tokens, divisors(options, tokens, self.style.normalise))

        return self._cut(question, context, encode)

    def padded_tokens(self, batch: Sequence[Encoded]) -> int:
        """See `Scorer.padded_tokens`."""
        options = [option for question in batch for option in question.options]
        return len(batch) * max(len(question.prompt) for question in batch) + len(options) * max(map(len, options))

    def forward(self, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        prompts = _padded([question.prompt for question in batch], 0).to(self.device)
        mask = _padded([[1] * len(question.prompt) for question in batch], 0).to(self.device)
        counts = [len(question.options) for question in batch]
        row = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)], device=self.device)
        labels = _padded([option for question in batch for option in question.options], IGNORED).to(self.device)
        states = self.model.get_encoder()(input_ids=prompts, attention_mask=mask).last_hidden_state
        logits = self.model(
            encoder_outputs=BaseModelOutput(states[row]),
            attention_mask=mask[row],
            decoder_input_ids=self._shifted(labels),
            use_cache=False,
        ).logits
        chosen = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        divisor = torch.tensor([value for question in batch for value in question.divisors], device=self.device)
        return list((-chosen.sum(dim=1) / divisor).split(counts))

    def _shifted(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the decoder's input: its start token, then all labels but the last."""
        start = torch.full_like(labels[:, :1], self.model.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])
