"""Options of chains: texts that a model writes before the letter of its answer."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core.options import Options
from sciqa.models.options import TemperatureOptions

#: Most tokens of a chain, and of an answer that is a letter, unless `--max-tokens` says otherwise.
CHAIN_TOKENS, LETTER_TOKENS = 1024, 16
#: Answers of a server per question, where these are letters without log-probabilities and `--samples` is not given.
LETTER_SAMPLES = 5


@dataclass(kw_only=True)
class ChainLengthOptions(Options):
    """The length of what a model writes."""

    max_tokens: int | Literal["auto"] = "auto"
    """Most tokens that a model writes for an answer: `auto` is 1024 with --completion reasoned, 16 for a letter that is
    drawn from a server."""

    def __post_init__(self) -> None:
        """Check the value."""
        super().__post_init__()
        self.at_least(1, "max_tokens")

    def tokens_of_answer(self, reasoned: bool) -> int:
        """Return the value of `max_tokens`."""
        if self.max_tokens == "auto":
            return CHAIN_TOKENS if reasoned else LETTER_TOKENS
        return self.max_tokens


@dataclass(kw_only=True)
class ChainOptions(ChainLengthOptions, TemperatureOptions):
    """How many answers a model writes, and how they are drawn."""

    samples: int | Literal["auto"] = "auto"
    """Answers drawn per question, each of which is a vote for a letter: `auto` is 1, the likeliest, with --completion
    reasoned, and 5 where a server gives no log-probabilities of letters."""

    def __post_init__(self) -> None:
        """Check the value."""
        super().__post_init__()
        self.at_least(1, "samples")

    def samples_of_question(self, reasoned: bool) -> int:
        """Return the value of `samples`."""
        if self.samples == "auto":
            return 1 if reasoned else LETTER_SAMPLES
        return self.samples


def chain_option_inputs(options: ChainOptions, reasoned: bool) -> dict:
    """Return what drawn answers follow from, for the inputs of a table."""
    samples = options.samples_of_question(reasoned)
    given = {"samples": samples, "max_tokens": options.tokens_of_answer(reasoned)}
    return given if samples == 1 else given | {"temperature": options.temperature, "seed": options.seed}
