"""Encoder-decoder models (T5, BART, …): the encoder reads context and question once, the decoder scores options."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sciqa.core.errors import InputError, QuestionError
from sciqa.exam.answer_options import answer_options_of
from sciqa.models.attention_limits import position_limit
from sciqa.models.padding import PaddedScorer, padded
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import template_prompt_text
from sciqa.models.scorer import EncodedForScorer, check_scorer_option, scorer_divisors

#: Label that the loss ignores.
IGNORED = -100


class Seq2SeqScorer(PaddedScorer):
    """Scores options by the decoder's log-likelihood of their text or letter, including the end token."""

    auto_class = "AutoModelForSeq2SeqLM"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, style: PromptFormat) -> None:
        super().__init__(model, tokenizer, style)
        if not model.config.is_encoder_decoder:
            raise InputError(
                f"{type(model).__name__}: not an encoder-decoder of text, so it cannot score options; use another model"
            )
        self.limit = min(self.limit, position_limit(model.get_encoder(), model.config))
        self.longest_option = position_limit(model.get_decoder(), model.config)

    def encode(self, question: dict, context: str) -> EncodedForScorer:
        """See `Scorer.encode`."""
        if self.style.completion == "yes":
            raise InputError("--completion yes: for causal models only; use text or letter")
        by_letter = answer_options_of(question)
        options = list(by_letter if self.style.completion == "letter" else by_letter.values())
        # Marian tokenises the decoder's text differently from the encoder's.
        tokens = self._tokens(text_target=options)
        check_scorer_option(
            question, by_letter, self._tokens(text_target=list(by_letter.values()), add_special_tokens=False)
        )
        if (longest := max(map(len, tokens))) > self.longest_option:
            raise QuestionError(
                f"question {question['id']!r}: an option of {longest} tokens, the model's decoder takes "
                f"{self.longest_option}; shorten it or use another model"
            )

        def encode(given: str) -> EncodedForScorer:
            prompt = self._tokens(template_prompt_text(question, given, self.style))
            return EncodedForScorer(prompt, tokens, scorer_divisors(options, tokens, self.style.normalise))

        return self.cut(question, context, encode)

    def _tokens(self, *texts: str, **how: object) -> list:
        """Tokenise texts; a `</s>` in them is read as text, not as the end."""
        return self.tokenizer(*texts, split_special_tokens=True, **how)["input_ids"]

    def padded_tokens(self, batch: Sequence[EncodedForScorer]) -> int:
        """See `Scorer.padded_tokens`."""
        total = 0
        for questions in self.groups([len(question.prompt) for question in batch]):
            chosen = [batch[number] for number in questions]
            lengths = [len(option) for question in chosen for option in question.options]
            total += len(chosen) * max(len(question.prompt) for question in chosen)
            total += sum(len(group) * max(lengths[number] for number in group) for group in self.groups(lengths))
        return total

    def forward(self, batch: Sequence[EncodedForScorer]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        return [
            torch.stack([each.sum() for each in chosen]) / torch.tensor(question.divisors, device=self.device)
            for chosen, question in zip(self._likelihoods(batch), batch, strict=True)
        ]

    def _likelihoods(self, batch: Sequence[EncodedForScorer]) -> list[list[torch.Tensor]]:
        """Return the log-likelihoods of the tokens of each option of each question."""
        found: dict[tuple[int, int], torch.Tensor] = {}
        for questions in self.groups([len(question.prompt) for question in batch]):
            self.reset()
            read = self._read([batch[question].prompt for question in questions])
            each = [(row, option) for row, q in enumerate(questions) for option in range(len(batch[q].options))]
            options = [batch[questions[row]].options[option] for row, option in each]
            for numbers in self.groups([len(option) for option in options]):
                rows = torch.tensor([each[number][0] for number in numbers], device=self.device)
                chosen = self._say(_only(read, rows), [options[number] for number in numbers])
                found |= {(questions[each[n][0]], each[n][1]): one for n, one in zip(numbers, chosen, strict=True)}
        return [[found[number, option] for option in range(len(q.options))] for number, q in enumerate(batch)]

    def _read(self, prompts: list[list[int]]) -> dict[str, Any]:
        """Return prompts, shape (prompts, tokens), and their encoder output, as arguments of the whole model.

        Given the encoder output, most models do not need the prompts; FSMT does, to mask later tokens of an option.
        """
        width = max(map(len, prompts))
        padding = self.model.config.pad_token_id
        ids = padded(prompts, 0 if padding is None else padding, width).to(self.device)
        mask = padded([[1] * len(prompt) for prompt in prompts], 0, width).to(self.device)
        given = {"input_ids": ids, "attention_mask": mask}
        return given | {"encoder_outputs": self.model.get_encoder()(**given)}

    def _say(self, read: dict[str, Any], options: list[list[int]]) -> list[torch.Tensor]:
        """Return the log-likelihoods of the tokens of options, each given its encoded prompt."""
        labels = padded(options, IGNORED, max(map(len, options))).to(self.device)
        logits = self.model(**read, decoder_input_ids=self._shifted(labels), use_cache=False).logits
        chosen = -torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        return [row[: len(option)] for row, option in zip(chosen, options, strict=True)]

    def _shifted(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the decoder input as in training: the start token, then all labels but the last.

        mBART and similar models start with the last label, which is the language.
        """
        if shift := getattr(self.model, "prepare_decoder_input_ids_from_labels", None):
            return shift(labels.clone())  # some models change their input
        start = torch.full_like(labels[:, :1], self.model.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)

    def check_causal(self, question: EncodedForScorer) -> None:
        """See `PaddedScorer.check_causal`."""
        option, other = (question.options[0] * 4)[:4], question.prompt[len(question.prompt) // 2]
        # mBART starts with the last token, so the last token stays and the one before it changes.
        changed = [*option[:2], other, option[3]]
        first, second = self._likelihoods([EncodedForScorer(question.prompt, [option, changed], [1.0, 1.0])])[0]
        if (first[:2] - second[:2]).abs().max() > 1e-3:
            raise InputError(
                f"{type(self.model).__name__}: what its decoder predicts depends on the tokens that follow, so it "
                "cannot score options; its configuration should say that the decoder is one (is_decoder)"
            )


def _only(read: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Return some rows of the result of `_read`."""
    chosen = {name: value[rows] for name, value in read.items() if name != "encoder_outputs"}
    outputs = copy.copy(read["encoder_outputs"])  # each model has its own output class
    outputs["last_hidden_state"] = outputs.last_hidden_state[rows]
    return chosen | {"encoder_outputs": outputs}
