"""Causal language models: the log-likelihood of each option after a prompt that is computed once.

Tokens are split as lm-evaluation-harness splits them: prompt and option are tokenised together, and the option's tokens
are those beyond the tokens of the prompt alone.
"""

from collections.abc import Sequence

import torch

from sciqa.exam.questions import options_of
from sciqa.models.packing import pack, row_tokens, share_prefixes
from sciqa.models.scorer import (
    CUE,
    Encoded,
    Scorer,
    batch_by_tokens,
    check_tokens,
    common_tokens,
    divisors,
    prompt_text,
)

#: What is asked of each option where the likelihood of a yes ranks them.
YES_CUE = "\nProposed answer: {option}\nIs the proposed answer right?"


class CausalScorer(Scorer):
    """Scores options by the log-likelihood of their text, or of their letter, after the prompt."""

    auto_class = "AutoModelForCausalLM"

    def encode(self, question: dict, context: str) -> Encoded:
        """See `Scorer.encode`."""
        options = options_of(question)
        check_tokens(question, options, self.tokenizer(list(options.values()), add_special_tokens=False)["input_ids"])
        encoded = self._cut(question, context, lambda given: self._encode(question, given))
        check_tokens(question, options, encoded.options)  # none may be left of one beyond the prompt's own tokens
        return encoded

    def _encode(self, question: dict, context: str) -> Encoded:
        if self.style.completion == "yes":
            return self._encode_yes(question, context)
        by_letter, space = options_of(question), self._space
        options = list(by_letter if self.style.completion == "letter" else by_letter.values())
        prompt = self._prompt(question, context)
        return self.encode_text(prompt, [space + option for option in options], bool(space))

    def _encode_yes(self, question: dict, context: str) -> Encoded:
        """Return prompts that each propose an option: what differs as options, of which the yes at the end counts."""
        cues = [YES_CUE.format(option=option) for option in options_of(question).values()]
        prompts = [self._prompt(question, context, cue) for cue in cues]
        whole = [f"{prompt}{self._space}Yes" for prompt in prompts]
        before, rows = (
            self.tokenizer(texts, add_special_tokens=bool(self._space))["input_ids"] for texts in (prompts, whole)
        )
        shared = min(common_tokens(rows), *(len(row) - 1 for row in before))
        counted = [len(row) - len(start) for row, start in zip(rows, before, strict=True)]
        return Encoded(rows[0][:shared], [row[shared:] for row in rows], [1.0] * len(rows), counted)

    @property
    def _space(self) -> str:
        """What stands between prompt and option; a chat template ends where the answer begins."""
        return "" if self.style.prompt == "chat" else " "

    def _prompt(self, question: dict, context: str, cue: str | None = None) -> str:
        """Return what the model reads before it says an option, or yes to the one that the cue proposes."""
        if self.style.prompt == "plain":
            return prompt_text(question, context, self.style.completion, cue or CUE)
        asked = [{"role": "user", "content": prompt_text(question, context, self.style.completion, cue or "")}]
        return self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)

    def encode_text(self, prompt: str, options: list[str], add_special_tokens: bool = True) -> Encoded:
        """Return a prompt and its continuations in tokens; each should begin with the space before it, if any."""
        first = self.tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"]
        texts = [prompt + option for option in options]
        whole = self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
        tokens = [ids[len(first) :] for ids in whole]
        return Encoded(first, tokens, divisors(options, tokens, self.style.normalise))

    @property
    def _soft_prompt(self) -> bool:
        return getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False)

    def tokens(self, batch: Sequence[Encoded]) -> int:
        """See `Scorer.tokens`."""
        if self._soft_prompt:
            return sum(sum(self._row_lengths(question)) for question in batch)
        return sum(row_tokens([batch[number] for number in row]) for row in share_prefixes(batch))

    def _row_lengths(self, question: Encoded) -> list[int]:
        """Return the tokens of each option's row, the soft prompt included, as `_score_rows` computes them."""
        before = self.model.active_peft_config.num_virtual_tokens + len(question.prompt)
        return [before + len(option) for option in question.options]

    def padded_tokens(self, batch: Sequence[Encoded]) -> int:
        """See `Scorer.padded_tokens`."""
        if self._soft_prompt:
            lengths = [length for question in batch for length in self._row_lengths(question)]
            return len(lengths) * max(lengths)
        rows = share_prefixes(batch)
        return len(rows) * max(row_tokens([batch[number] for number in row]) for row in rows)

    def batches(self, questions: Sequence[Encoded], budget: int) -> list[list[int]]:
        """See `Scorer.batches`; questions whose prompts begin alike, as with one context for several, share a row."""
        if self._soft_prompt:
            numbers = [[number] for number in range(len(questions))]
            return batch_by_tokens(numbers, [self.padded_tokens([question]) for question in questions], budget)
        rows = share_prefixes(questions, budget)
        return batch_by_tokens(rows, [row_tokens([questions[number] for number in row]) for row in rows], budget)

    def forward(self, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        if self._soft_prompt:
            return self._score_rows(batch)
        packed = pack(batch)
        logits = self.model(
            input_ids=packed.ids.to(self.device),
            attention_mask=packed.mask.to(self.device),
            position_ids=packed.positions.to(self.device),
            logits_to_keep=packed.ids.shape[1] - packed.first,
            use_cache=False,
        ).logits
        return [
            likelihoods(logits[row, [column - packed.first for column in columns]], question)
            for (row, columns), question in zip(packed.places, batch, strict=True)
        ]

    def _score_rows(self, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """Score with a row per option, as soft prompts need: peft puts them before plain, unpacked rows."""
        rows = [question.prompt + option for question in batch for option in question.options]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        logits = iter(self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -width:])
        scores = []
        for question in batch:
            each = []
            for number, (option, counted) in enumerate(zip(question.options, question.counted, strict=True)):
                last = len(question.prompt) + len(option) - 1
                each.append(likelihoods(next(logits)[last - counted : last], question.only(number)))
            scores.append(torch.cat(each))
        return scores


def likelihoods(logits: torch.Tensor, question: Encoded) -> torch.Tensor:
    """Return normalised log-likelihoods, shape (options,), of options.

    Args:
        logits: one row for each of their tokens that count, which it predicts, shape (tokens, vocabulary).
        question: the options.
    """
    chosen = -torch.nn.functional.cross_entropy(logits.float(), targets(question).to(logits.device), reduction="none")
    return normalised(chosen, question)


def targets(question: Encoded) -> torch.Tensor:
    """Return the tokens of all options that count, one option after the other."""
    pairs = zip(question.options, question.counted, strict=True)
    return torch.tensor([token for option, counted in pairs for token in option[len(option) - counted :]])


def normalised(chosen: torch.Tensor, question: Encoded) -> torch.Tensor:
    """Return the sums, shape (options,), of the log-likelihoods of the options' tokens over their divisors."""
    sums = torch.stack([part.sum() for part in chosen.split(question.counted)])
    return sums / torch.tensor(question.divisors, device=chosen.device)
