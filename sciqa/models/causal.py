"""Causal language models: the log-likelihood of each option after a prompt that is computed once.

A question is one row of the batch: its prompt, then all its options one after the other. The attention mask
lets the tokens of an option see the prompt and their own option, and their positions start where the prompt
ends, so every option gets the keys and values of the prompt that were computed once, and the scores are those
of as many separate sequences. Tokens are split as lm-evaluation-harness splits them: prompt and option are
tokenised together, and the option's tokens are those beyond the tokens of the prompt alone.
"""

from collections.abc import Sequence

import torch

from sciqa.exam.questions import options_of
from sciqa.models.scorer import Encoded, Scorer, divisors, prompt_text


class CausalScorer(Scorer):
    """Scores options by the log-likelihood of their text, or of their letter, after the prompt."""

    auto_class = "AutoModelForCausalLM"

    def encode(self, question: dict, context: str) -> Encoded:
        """See `Scorer.encode`."""
        return self._cut(question, context, lambda given: self._encode(question, given))

    def _encode(self, question: dict, context: str) -> Encoded:
        by_letter = options_of(question)
        options = list(by_letter if self.style.completion == "letter" else by_letter.values())
        if self.style.prompt == "chat":
            asked = [{"role": "user", "content": prompt_text(question, context, self.style.completion, cue="")}]
            prompt = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            return self.encode_text(prompt, options, add_special_tokens=False)
        prompt = prompt_text(question, context, self.style.completion)
        return self.encode_text(prompt, [f" {option}" for option in options])

    def encode_text(self, prompt: str, options: list[str], add_special_tokens: bool = True) -> Encoded:
        """Return a prompt and its continuations in tokens; each should begin with the space before it, if any."""
        first = self.tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"]
        texts = [prompt + option for option in options]
        whole = self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
        tokens = [ids[len(first) :] for ids in whole]
        return Encoded(first, tokens, divisors(options, tokens, self.style.normalise))

    def padded_tokens(self, batch: Sequence[Encoded]) -> int:
        """See `Scorer.padded_tokens`."""
        return len(batch) * max(question.length for question in batch)

    def forward(self, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        if getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False):
            return self._score_rows(batch)
        ids, positions, mask = layout(batch)
        # The last prompt token predicts the first token of each option, so it is the first whose logits are wanted.
        first = min(len(question.prompt) for question in batch) - 1
        logits = self.model(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions.to(self.device),
            logits_to_keep=ids.shape[1] - first,
            use_cache=False,
        ).logits
        scores = []
        for row, question in zip(logits, batch, strict=True):
            scores.append(_likelihoods(row[[column - first for column in predicting(question)]], question))
        return scores

    def _score_rows(self, batch: Sequence[Encoded]) -> list[torch.Tensor]:
        """Score with a row per option, as soft prompts need: peft puts them before plain, unpacked rows."""
        rows = [question.prompt + option for question in batch for option in question.options]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        logits = iter(self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -width:])
        scores = []
        for question in batch:
            start = len(question.prompt) - 1
            each = [
                _likelihoods(next(logits)[start : start + len(option)], Encoded([], [option], [divisor]))
                for option, divisor in zip(question.options, question.divisors, strict=True)
            ]
            scores.append(torch.cat(each))
        return scores


def _likelihoods(logits: torch.Tensor, question: Encoded) -> torch.Tensor:
    """Return normalised log-likelihoods, shape (options,), of options whose tokens `logits`, one row each, predict."""
    chosen = -torch.nn.functional.cross_entropy(logits.float(), targets(question).to(logits.device), reduction="none")
    return normalised(chosen, question)


def targets(question: Encoded) -> torch.Tensor:
    """Return the tokens of all options, one option after the other."""
    return torch.tensor([token for option in question.options for token in option], dtype=torch.long)


def predicting(question: Encoded) -> list[int]:
    """Return for each of these tokens the place in the question's row that predicts it."""
    last = len(question.prompt) - 1
    columns, start = [], last + 1
    for option in question.options:
        columns += [last, *range(start, start + len(option) - 1)][: len(option)]
        start += len(option)
    return columns


def normalised(chosen: torch.Tensor, question: Encoded) -> torch.Tensor:
    """Return the sums, shape (options,), of the log-likelihoods of the options' tokens over their divisors."""
    sums = torch.stack([part.sum() for part in chosen.split([len(option) for option in question.options])])
    return sums / torch.tensor(question.divisors, device=chosen.device)


def layout(questions: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, positions and attention mask of rows that each hold a prompt and its options.

    Returns:
        ids and positions of shape (questions, tokens), and the mask of shape (questions, 1, tokens, tokens) with
        True where a token (row) sees another (column).
    """
    width = max(question.length for question in questions)
    ids = torch.zeros(len(questions), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segment = torch.full_like(ids, -1)  # -1 padding, 0 prompt, 1… options
    for number, question in enumerate(questions):
        start = 0
        for part, tokens in enumerate([question.prompt, *question.options]):
            columns = slice(start, start + len(tokens))
            ids[number, columns] = torch.tensor(tokens, dtype=torch.long)
            positions[number, columns] = torch.arange(len(tokens)) + (len(question.prompt) if part else 0)
            segment[number, columns] = part
            start += len(tokens)
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    here, there = segment[:, :, None], segment[:, None, :]
    sees = earlier & ((there == 0) | (here == there)) & (there >= 0)
    # A padding token sees itself, since a row of the softmax with nothing to see is not a number.
    sees |= torch.eye(width, dtype=torch.bool)
    return ids, positions, sees[:, None]
