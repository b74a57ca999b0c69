"""Log-likelihood of options given a prompt, the prompt computed once for all options of a question.

A question is one row of the batch: its prompt, then all its options one after the other. The attention mask
lets the tokens of an option see the prompt and their own option, and their positions start where the prompt
ends, so every option gets the keys and values of the prompt that were computed once, and the scores are those
of as many separate sequences. Tokens are split as lm-evaluation-harness splits them: prompt and option are
tokenised together, and the option's tokens are those beyond the tokens of the prompt alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Normalise = Literal["none", "tokens", "characters"]


@dataclass(frozen=True)
class Encoded:
    """A question in tokens: the prompt's, and each option's."""

    prompt: list[int]
    options: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens in the row that scores this question."""
        return len(self.prompt) + sum(map(len, self.options))


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, options: list[str]) -> Encoded:
    """Return a prompt and its continuations in tokens; each option should begin with the space before it."""
    first = tokenizer(prompt)["input_ids"]
    whole = tokenizer([prompt + option for option in options])["input_ids"]
    return Encoded(first, [ids[len(first) :] for ids in whole])


def batch_by_tokens(questions: list[Encoded], budget: int) -> list[list[int]]:
    """Return the numbers of the questions in batches of like length, each of at most `budget` padded tokens."""
    batches: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(questions)), key=lambda number: -questions[number].length):
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = questions[number].length
        batches[-1].append(number)
    return batches


def log_likelihoods(model: PreTrainedModel, questions: list[Encoded], tokens_per_batch: int = 2048) -> list[np.ndarray]:
    """Return the summed log-likelihood of every option's tokens, one array of shape (options,) per question."""
    scores: list[np.ndarray] = [np.empty(0)] * len(questions)
    for batch in batch_by_tokens(questions, tokens_per_batch):
        found = _score_batch(model, [questions[number] for number in batch])
        for number, score in zip(batch, found, strict=True):
            scores[number] = score
    return scores


def normalise_scores(scores: np.ndarray, encoded: Encoded, options: list[str], by: Normalise) -> np.ndarray:
    """Divide log-likelihoods by the options' lengths in tokens or characters (`none` leaves them)."""
    if by == "none":
        return scores
    lengths = [len(ids) for ids in encoded.options] if by == "tokens" else [len(option) for option in options]
    return scores / np.maximum(lengths, 1)


@torch.inference_mode()
def _score_batch(model: PreTrainedModel, questions: list[Encoded]) -> list[np.ndarray]:
    ids, positions, mask, tail = _layout(questions)
    device = model.device
    # The last prompt token predicts the first token of each option, so it is the first whose logits are wanted.
    logits = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        logits_to_keep=tail + 1,
        use_cache=False,
    ).logits
    scores = []
    for row, question in zip(logits, questions, strict=True):
        sums, start = [], 1
        for option in question.options:
            before = [0, *range(start, start + len(option) - 1)][: len(option)]
            predicted = row[before].float()
            targets = torch.tensor(option, dtype=torch.long, device=device)
            chosen = predicted.gather(1, targets[:, None])[:, 0] - predicted.logsumexp(dim=1)
            sums.append(chosen.sum().item())
            start += len(option)
        scores.append(np.array(sums))
    return scores


def _layout(questions: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return token ids, positions and attention mask: prompts end, and options begin, at the same column.

    Returns:
        ids and positions of shape (questions, tokens), the mask of shape (questions, 1, tokens, tokens) with
        True where a token (row) sees another (column), and the number of columns that hold options.
    """
    head = max(len(question.prompt) for question in questions)
    tail = max(question.length - len(question.prompt) for question in questions)
    ids = torch.zeros(len(questions), head + tail, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segment = torch.full_like(ids, -1)  # -1 padding, 0 prompt, 1… options
    for number, question in enumerate(questions):
        size = len(question.prompt)
        start = head - size
        for part, tokens in enumerate([question.prompt, *question.options]):
            columns = slice(start, start + len(tokens))
            ids[number, columns] = torch.tensor(tokens, dtype=torch.long)
            positions[number, columns] = torch.arange(len(tokens)) + (size if part else 0)
            segment[number, columns] = part
            start += len(tokens)
    earlier = torch.ones(head + tail, head + tail, dtype=torch.bool).tril()
    here, there = segment[:, :, None], segment[:, None, :]
    sees = earlier & ((there == 0) | (here == there)) & (there >= 0)
    # A padding token sees itself, since a row of the softmax with nothing to see is not a number.
    sees |= torch.eye(head + tail, dtype=torch.bool)
    return ids, positions, sees[:, None], tail
