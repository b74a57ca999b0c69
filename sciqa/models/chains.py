"""Chains: texts that a causal model writes before its answer, in batches, greedily or drawn.

A chain follows from its prompt, its number and the seed alone. Its draws come from a random generator of its own, and
rows of different lengths stand in one batch only where padding changes no score. So in float32 no batch, order or
number of workers changes a chain; in 16 bits a batch of another shape rounds otherwise, which can change one.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

from sciqa.core.tables import fingerprint
from sciqa.models.batch_layout import batch_by_tokens
from sciqa.models.causal import CausalScorer
from sciqa.models.padding import padded
from sciqa.models.scorer import Encoded
from sciqa.models.text_encoder import OPENED
from sciqa.models.thoughts import thoughts_end_mark, thoughts_start_mark

#: Tokens whose keys and values are kept in a batch, for each token of a batch that is scored: a step computes only one
#: token of a row.
KEPT = 8
#: Text that asks a chain for its answer, where it names none.
CUE = "\nAnswer:"
#: Most tokens that follow a chain: the mark that closes its thoughts, the cue, and the letter.
CUE_TOKENS = 24
#: Last tokens of a prompt among which is the mark of thoughts that it opens.
MARK_TOKENS = 12


@dataclass(frozen=True)
class ChainSettings:
    """How chains are written.

    Attributes:
        samples: chains per prompt; a single one is greedy.
        max_tokens: most tokens of a chain.
        temperature: temperature of several chains; None is the model's own, else 1.
        seed: seed of their draws.
    """

    samples: int
    max_tokens: int
    temperature: float | None
    seed: int


class Chain(NamedTuple):
    """A text that a model has written.

    Attributes:
        tokens: its tokens, without the one that ends a text.
        text: its text, control tokens too.
        finished: whether the model ended it; otherwise it was cut off.
        opened: the mark of thoughts that its prompt has opened, or an empty text.
    """

    tokens: list[int]
    text: str
    finished: bool
    opened: str

    @property
    def whole_text(self) -> str:
        """The text after the mark of thoughts that the prompt has opened."""
        return self.opened + self.text


class SeededChainDraws(LogitsProcessor):
    """Adds noise to scores, so that the token with the largest sum is drawn by their softmax (the Gumbel-max trick).

    Each row has a random generator of its own. Unlike a draw by cumulative probabilities, one changes by rounding only
    where two sums are equal but for rounding.

    Args:
        seeds: seed of each row.
        device: device of the scores.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores with noise, shape (rows, vocabulary); a call is one step of all rows."""
        noise = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return cast("torch.FloatTensor", scores - noise.log())


class StopChainAtEnd(StoppingCriteria):
    """Ends a row where a line ends and its text is whole.

    Args:
        tokenizer: tokenizer of the model.
        start: tokens of the prompts.
        ends: tells of a text whether it is whole.
        opened: mark of thoughts that each row's prompt has opened.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, start: int, ends: Callable[[str], bool], opened: Sequence[str]
    ) -> None:
        self.tokenizer, self.start, self.ends, self.opened = tokenizer, start, ends, opened

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.BoolTensor:
        """Return which rows have ended, shape (rows,)."""
        rows = zip(input_ids[:, self.start :].tolist(), self.opened, strict=True)
        ended = [
            "\n" in decode_chain(self.tokenizer, row[-1:]) and self.ends(opened + decode_chain(self.tokenizer, row))
            for row, opened in rows
        ]
        return cast("torch.BoolTensor", torch.tensor(ended, device=input_ids.device))


def decode_chain(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Return the text of tokens as they are, control tokens too."""
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@torch.inference_mode()
def write_chains(
    scorer: CausalScorer,
    prompts: Sequence[list[int]],
    settings: ChainSettings,
    tokens_per_batch: int,
    ends: Callable[[str], bool],
) -> list[list[Chain]]:
    """Return the chains of each prompt, `settings.samples` of them.

    Args:
        scorer: the model.
        prompts: tokens of the prompts.
        settings: number, length and draws of the chains.
        tokens_per_batch: tokens of a batch that is scored; a batch of chains keeps `KEPT` times as many.
        ends: tells of a text that ends with a line whether it is whole, so that nothing has to follow.
    """
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(settings.samples)]
    lengths = [len(prompts[prompt]) + settings.max_tokens for prompt, _ in rows]
    chains: list[list[Chain]] = [[] for _ in prompts]
    made: dict[int, Chain] = {}
    for batch in _batches(scorer, lengths, KEPT * tokens_per_batch):
        written = _write(scorer, [(prompts[rows[row][0]], rows[row][1]) for row in batch], settings, ends)
        made |= dict(zip(batch, written, strict=True))
    for row, (prompt, _) in enumerate(rows):
        chains[prompt].append(made[row])
    return chains


def _batches(scorer: CausalScorer, lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Yield the rows of each batch: of any length where padding is proved to change nothing, else of one length."""
    kinds: dict[object, list[int]] = {}
    for row, length in enumerate(lengths):
        alone = scorer.layout == "single rows" or length > scorer.alone_beyond
        pads = scorer.layout == "packed" and scorer.rope.length is None and scorer.longest_row == 1 << 62
        kinds.setdefault(("row", row) if alone else "any" if pads else length, []).append(row)
    for found in kinds.values():
        for batch in batch_by_tokens([[at] for at in range(len(found))], [lengths[row] for row in found], budget):
            yield [found[at] for at in batch]


def _write(
    scorer: CausalScorer, rows: list[tuple[list[int], int]], settings: ChainSettings, ends: Callable[[str], bool]
) -> list[Chain]:
    """Return one chain for each pair of prompt and number of the sample."""
    model, tokenizer = cast("Any", scorer.model), scorer.tokenizer
    prompts = [prompt for prompt, _ in rows]
    start = max(map(len, prompts))
    found = [OPENED.search(decode_chain(tokenizer, prompt[-MARK_TOKENS:])) for prompt in prompts]
    opened = [each["mark"] if each else "" for each in found]
    stops = chain_end_tokens(scorer)
    made = model.generate(
        input_ids=padded(prompts, stops[0], start, "left").to(scorer.device),
        attention_mask=padded([[1] * len(prompt) for prompt in prompts], 0, start, "left").to(scorer.device),
        max_new_tokens=settings.max_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=stops,
        pad_token_id=stops[0],
        stopping_criteria=StoppingCriteriaList([StopChainAtEnd(tokenizer, start, ends, opened)]),
        logits_processor=_draws(scorer, rows, settings),
    )[:, start:].tolist()
    return [_chain(tokenizer, tokens, stops, ends, mark) for tokens, mark in zip(made, opened, strict=True)]


def chain_end_tokens(scorer: CausalScorer) -> list[int]:
    """Return the tokens that end a text of a model: those of its files, and its tokenizer's."""
    own = cast("Any", scorer.model).generation_config.eos_token_id
    found = own if isinstance(own, list) else [own]
    known = {token for token in [*found, scorer.tokenizer.eos_token_id] if token is not None}
    return sorted(known) or [scorer.tokenizer.pad_token_id or 0]


def _draws(scorer: CausalScorer, rows: list[tuple[list[int], int]], settings: ChainSettings) -> LogitsProcessorList:
    """Return what shapes and draws the next tokens; nothing for a single, greedy chain.

    As in transformers' own sampling, the model's files may limit the draw to the likeliest tokens (top-k, top-p).
    """
    if settings.samples == 1:
        return LogitsProcessorList()
    own = cast("Any", scorer.model).generation_config
    shaped = LogitsProcessorList([TemperatureLogitsWarper(float(settings.temperature or own.temperature or 1.0))])
    if own.top_k:
        shaped.append(TopKLogitsWarper(own.top_k))
    if own.top_p and own.top_p < 1:
        shaped.append(TopPLogitsWarper(own.top_p))
    seeds = [int(fingerprint([settings.seed, prompt, sample])[:15], 16) for prompt, sample in rows]
    shaped.append(SeededChainDraws(seeds, scorer.device))
    return shaped


def _chain(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], stops: list[int], ends: Callable[[str], bool], opened: str
) -> Chain:
    end = next((at for at, token in enumerate(tokens) if token in stops), len(tokens))
    text = decode_chain(tokenizer, tokens[:end])
    return Chain(tokens[:end], text, end < len(tokens) or ends(opened + text), opened)


def encode_chain_letters(
    scorer: CausalScorer, prompt: list[int], chain: Chain, at: int | None, letters: Sequence[str]
) -> Encoded:
    """Return the letters of a question as options that follow a chain, to be scored.

    They stand where the chain names its letter. Where it names none, they follow a cue: the thoughts that are open are
    closed, and "Answer:" is written (budget forcing: Muennighoff et al. 2025, s1, section 3.1).

    Args:
        scorer: the model.
        prompt: tokens of the prompt.
        chain: what the model has written after it.
        at: place of the letter in the chain's text; None if it names none.
        letters: letters of the options.
    """
    kept, before, space = chain.tokens, "", " "
    if at is None:
        mark = thoughts_start_mark(chain.whole_text)
        before = (f"\n{thoughts_end_mark(mark)}\n" if mark else "") + CUE
    else:
        ends = range(len(chain.tokens) + 1)
        number = bisect_right(ends, at, key=lambda end: len(decode_chain(scorer.tokenizer, chain.tokens[:end]))) - 1
        kept = chain.tokens[:number]
        space = chain.text[len(decode_chain(scorer.tokenizer, kept)) : at]
    cue, options = scorer.text.continued(before or ":", [space + letter for letter in letters], start=False)
    return Encoded([*prompt, *kept, *(cue if before else [])], options, [1.0] * len(options))
