"""Decoding: the tokens that a causal model writes after prompts, in batches, the likeliest ones or drawn.

A text follows from its prompt and its seed alone. Its draws come from a random generator of its own, and rows of
different lengths stand in one batch only where padding changes no score. So in float32 no batch, order or number of
workers changes a text; in 16 bits a batch of another shape rounds otherwise, which can change one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sciqa.core.errors import InputError
from sciqa.models.batch_layout import batch_by_tokens
from sciqa.models.causal import CausalScorer
from sciqa.models.padding import padded
from sciqa.models.scorer import Scorer


class TokenDraws(NamedTuple):
    """How tokens are drawn.

    Attributes:
        seeds: seed of each prompt.
        temperature: temperature; None is the model's own, else 1.
    """

    seeds: Sequence[int]
    temperature: float | None = None


class SeededTokenDraws(LogitsProcessor):
    """Adds noise to scores, so that the token with the largest sum is drawn by their softmax (the Gumbel-max trick).

    Each row has a random generator and a seed of its own. Unlike a draw by cumulative probabilities, one changes by
    rounding only where two sums are equal but for rounding.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores with noise, shape (rows, vocabulary); a call is one step of all rows."""
        noise = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return cast("torch.FloatTensor", scores - noise.log())


class CheckDecodedScores(LogitsProcessor):
    """Ends decoding where the scores of tokens are not numbers, which would otherwise be written as some text.

    Args:
        model: name of the model's class, for the message.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores as they are.

        Raises:
            InputError: a score is not a number.
        """
        if scores.isnan().any():
            raise InputError(
                f"{self.model}: its scores of a next token are not numbers; pass --precision float32 (or bfloat16), or "
                "weights that are whole"
            )
        return scores


@torch.inference_mode()
def generate_tokens(
    scorer: CausalScorer,
    prompts: Sequence[list[int]],
    max_tokens: int,
    tokens_per_batch: int,
    draws: TokenDraws | None = None,
    constrain: Callable[[list[int]], LogitsProcessor] | None = None,
    stop: Callable[[list[int], int], StoppingCriteria] | None = None,
) -> list[list[int]]:
    """Return the tokens that a model writes after each prompt, with the one that ends the text if there is one.

    Args:
        scorer: the model.
        prompts: tokens of the prompts.
        max_tokens: most tokens after a prompt.
        tokens_per_batch: most tokens of a batch, those that are still to be written too; a longer row is one alone.
        draws: how tokens are drawn; None takes the likeliest ones.
        constrain: returns what limits the tokens of a batch, by the numbers of its prompts.
        stop: returns what ends rows besides the model's own tokens, by these numbers and the length of padded prompts.

    Raises:
        InputError: scores of tokens are not numbers.
    """
    stops = decoding_end_tokens(scorer)
    lengths = [len(prompt) + max_tokens for prompt in prompts]
    made: dict[int, list[int]] = {}
    for batch in _batches(scorer, lengths, tokens_per_batch):
        rows = [prompts[number] for number in batch]
        start = max(map(len, rows))
        processors = LogitsProcessorList([CheckDecodedScores(type(scorer.model).__name__)])
        processors += [constrain(batch)] if constrain else []
        if draws:
            processors += _drawn(scorer, [draws.seeds[number] for number in batch], draws.temperature)
        written = (
            cast("Any", scorer.model)
            .generate(
                input_ids=padded(rows, stops[0], start, "left").to(scorer.device),
                attention_mask=padded([[1] * len(row) for row in rows], 0, start, "left").to(scorer.device),
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=stops,
                pad_token_id=stops[0],
                stopping_criteria=StoppingCriteriaList([stop(batch, start)] if stop else []),
                logits_processor=processors,
            )[:, start:]
            .tolist()
        )
        for number, tokens in zip(batch, written, strict=True):
            end = next((at for at, token in enumerate(tokens, 1) if token in stops), None)
            made[number] = tokens[:end]
    return [made[number] for number in range(len(prompts))]


def _batches(scorer: CausalScorer, lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Yield the rows of each batch: of any length where padding is proved to change nothing, else of one length."""
    kinds: dict[object, list[int]] = {}
    for row, length in enumerate(lengths):
        alone = scorer.layout == "single rows" or length > scorer.alone_beyond
        pads = scorer.takes_prefix
        kinds.setdefault(("row", row) if alone else "any" if pads else length, []).append(row)
    for found in kinds.values():
        for batch in batch_by_tokens([[at] for at in range(len(found))], [lengths[row] for row in found], budget):
            yield [found[at] for at in batch]


def decoding_end_tokens(scorer: Scorer) -> list[int]:
    """Return the tokens that end a text of a model: those of its files, and its tokenizer's."""
    own = cast("Any", scorer.model).generation_config.eos_token_id
    found = own if isinstance(own, list) else [own]
    known = {token for token in [*found, scorer.tokenizer.eos_token_id] if token is not None}
    return sorted(known) or [scorer.tokenizer.pad_token_id or 0]


def decode_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Return the text of tokens as they are, control tokens too."""
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _drawn(scorer: CausalScorer, seeds: list[int], temperature: float | None) -> LogitsProcessorList:
    """Return what shapes and draws the next tokens of rows with these seeds.

    As in transformers' own sampling, the model's files may limit the draw to the likeliest tokens (top-k, top-p).
    """
    own = cast("Any", scorer.model).generation_config
    shaped = LogitsProcessorList([TemperatureLogitsWarper(float(temperature or own.temperature or 1.0))])
    if own.top_k:
        shaped.append(TopKLogitsWarper(own.top_k))
    if own.top_p and own.top_p < 1:
        shaped.append(TopPLogitsWarper(own.top_p))
    shaped.append(SeededTokenDraws(seeds, scorer.device))
    return shaped
