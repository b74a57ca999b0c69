"""Chains: texts that a causal model writes before its answer, greedily or drawn.

A chain follows from its prompt, its number and the seed alone; see `sciqa.models.decoding`.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from sciqa.core.hashes import fingerprint
from sciqa.models.causal import CausalScorer
from sciqa.models.decoding import TokenDraws, decode_tokens, decoding_end_tokens, generate_tokens
from sciqa.models.scorer import EncodedForScorer
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


class StopChainAtEnd(StoppingCriteria):
    """Ends a row where a line ends and its text, with the mark of thoughts that its prompt has opened, is whole.

    The text of a row begins after `start` tokens; `ends` tells whether it is whole.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, start: int, ends: Callable[[str], bool], opened: Sequence[str]
    ) -> None:
        self.tokenizer, self.start, self.ends, self.opened = tokenizer, start, ends, opened

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.BoolTensor:
        """Return which rows have ended, shape (rows,)."""
        rows = zip(input_ids[:, self.start :].tolist(), self.opened, strict=True)
        ended = [
            "\n" in decode_tokens(self.tokenizer, row[-1:]) and self.ends(opened + decode_tokens(self.tokenizer, row))
            for row, opened in rows
        ]
        return cast("torch.BoolTensor", torch.tensor(ended, device=input_ids.device))


def write_chains(
    scorer: CausalScorer,
    prompts: Sequence[list[int]],
    settings: ChainSettings,
    tokens_per_batch: int,
    ends: Callable[[str], bool],
) -> list[list[Chain]]:
    """Return the chains of each prompt, `settings.samples` of them.

    `tokens_per_batch` is for batches that are scored; a batch of chains keeps `KEPT` times as many. `ends` tells of a
    text that ends with a line whether it is whole, so that nothing has to follow.
    """
    tokenizer, samples = scorer.tokenizer, settings.samples
    found = [OPENED.search(decode_tokens(tokenizer, prompt[-MARK_TOKENS:])) for prompt in prompts]
    opened = [each["mark"] if each else "" for each in found for _ in range(samples)]
    seeds = [int(fingerprint([settings.seed, each, sample])[:15], 16) for each in prompts for sample in range(samples)]
    made = generate_tokens(
        scorer,
        [prompt for prompt in prompts for _ in range(samples)],
        settings.max_tokens,
        KEPT * tokens_per_batch,
        draws=TokenDraws(seeds, settings.temperature) if samples > 1 else None,
        stop=lambda rows, start: StopChainAtEnd(tokenizer, start, ends, [opened[row] for row in rows]),
    )
    stops = decoding_end_tokens(scorer)
    chains = [_chain(tokenizer, tokens, stops, ends, mark) for tokens, mark in zip(made, opened, strict=True)]
    return [chains[first : first + samples] for first in range(0, len(chains), samples)]


def _chain(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], stops: list[int], ends: Callable[[str], bool], opened: str
) -> Chain:
    end = next((at for at, token in enumerate(tokens) if token in stops), len(tokens))
    text = decode_tokens(tokenizer, tokens[:end])
    return Chain(tokens[:end], text, end < len(tokens) or ends(opened + text), opened)


def encode_chain_letters(
    scorer: CausalScorer, prompt: list[int], chain: Chain, at: int | None, letters: Sequence[str]
) -> EncodedForScorer:
    """Return the letters of a question as options that follow a chain, to be scored.

    They stand where the chain names its letter, at the place `at` in its text. Where it names none, and `at` is None,
    they follow a cue: the thoughts that are open are closed, and "Answer:" is written (budget forcing: Muennighoff et
    al. 2025, s1, section 3.1).
    """
    kept, before, space = chain.tokens, "", " "
    if at is None:
        mark = thoughts_start_mark(chain.whole_text)
        before = (f"\n{thoughts_end_mark(mark)}\n" if mark else "") + CUE
    else:
        ends = range(len(chain.tokens) + 1)
        number = bisect_right(ends, at, key=lambda end: len(decode_tokens(scorer.tokenizer, chain.tokens[:end]))) - 1
        kept = chain.tokens[:number]
        space = chain.text[len(decode_tokens(scorer.tokenizer, kept)) : at]
    cue, options = scorer.text.continued(before or ":", [space + letter for letter in letters], start=False)
    return EncodedForScorer([*prompt, *kept, *(cue if before else [])], options, [1.0] * len(options))
