"""Options of the `ask` step."""

import string
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from sciqa.core.errors import InputError
from sciqa.core.options import defaults_of
from sciqa.exam.answer_options import answer_option_text
from sciqa.models.options import TemperatureOptions
from sciqa.predict.options import ReaderModelOptions
from sciqa.retrieval.options import ContextOptions, SearchOptions

SAMPLING = ("temperature", "sample_top_k", "top_p")
#: Options that have an effect on the ranking of options alone, and on answers in words alone.
RANKING = ("rotations", "completion", "normalise")
WORDS = ("max_new_tokens", "num_beams", "do_sample")
#: Default number of context sentences for an answer in words. On 36 questions of the packaged validation split,
#: SmolLM2's answer was nearest to the right option for a share of 0.67 with the four nearest sentences of five
#: passages, 0.67 with the best passage whole, and 0.44 with the best three. Four sentences add facts that the best
#: passage lacks.
SENTENCES = 4


@dataclass(kw_only=True)
class AskAnswerOptions(TemperatureOptions, SearchOptions, ReaderModelOptions):
    """How one question is answered; the options of a question are ranked as by `retrieve` and `predict`."""

    context_passages: int | None = None
    """Number of best passages in the context; by default 1 with --options."""
    context_sentences: int | None = None
    """Use this many sentences of those passages as the context, the nearest to the question; by default, without
    --options and other context sizes, 4 from all passages kept."""
    context_order: Literal["text", "nearest"] | None = None
    """Order of the sentences: as in the passages (default with --options), or the nearest first (default without)."""
    max_new_tokens: int = 128
    """Most tokens of an answer in words."""
    num_beams: int = 1
    """Beams of beam search; with more than one, the answer is shown when complete, not word by word."""
    do_sample: bool = False
    """Sample the tokens; otherwise the likeliest ones are taken."""
    sample_top_k: int | None = None
    """Sample from this many of the likeliest tokens; by default, like the next option, as the model's files say."""
    top_p: float | None = None
    """Sample from the likeliest tokens with at least this total probability."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for ranks in (True, False):
            self.check_context(self.context_form(ranks).context_passages)
        if self.completion == "reasoned":
            raise InputError("--completion reasoned: only for `sciqa predict` and `sciqa exam`; leave it out")
        self.at_least(1, "max_new_tokens", "num_beams", "sample_top_k")
        for name in SAMPLING:
            flag, value = f"--{name.replace('_', '-')}", getattr(self, name)
            if value is not None and not value > 0:  # NaN neither
                raise InputError(f"{flag}: {value} given, more than 0 expected")
            if value is not None and not self.do_sample:
                raise InputError(f"{flag}: shapes the draws of --do-sample; pass that too")
        if self.top_p is not None and self.top_p > 1:
            raise InputError(f"--top-p: {self.top_p} given, at most 1 expected")

    def context_form(self, ranks: bool) -> ContextOptions:
        """Return the form of the context for ranking options, or for an answer in words."""
        passages, sentences = self.context_passages, self.context_sentences
        if not ranks and (passages, sentences, self.context_tokens) == (None, None, None):
            passages, sentences = self.top_k, SENTENCES
        return ContextOptions(
            context_passages=1 if passages is None else passages,
            context_sentences=sentences,
            context_order=self.context_order or ("text" if ranks else "nearest"),
        )


@dataclass(kw_only=True)
class AskOptions(AskAnswerOptions):
    """Options of the `ask` step."""

    question: Positional[str]
    """The question, given before all options of the command."""
    options: tuple[str, ...] = ()
    """2 to 26 options to rank, in quotes; without any, a causal model or T5 answers in words."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.question = _text("the question", self.question)
        self.options = tuple(_text("--options", option) for option in self.options)
        if not self.question:
            raise InputError("the question is empty; give it in quotes before all options")
        if len(self.options) == 1 or len(self.options) > len(string.ascii_uppercase):
            raise InputError(f"--options: {len(self.options)} given, 2 to 26 expected, or none for an answer in words")
        for number, option in enumerate(self.options):
            if not option or option in self.options[:number]:
                raise InputError(
                    f"--options: {option!r} is {'given twice' if option else 'empty'}; options must differ"
                )

    def as_row(self) -> dict:
        """Return the question as a row of the exam table."""
        lettered = dict(zip(string.ascii_uppercase, self.options, strict=False))
        return {"id": "asked", "prompt": self.question, "is_question": True, "context": None, "answer": None} | lettered

    def without_effect(self) -> list[str]:
        """Return the options that are given and have an effect on the other kind of answer alone, as flags."""
        defaults = defaults_of(AskAnswerOptions)
        given = [name for name in (WORDS if self.options else RANKING) if getattr(self, name) != defaults[name]]
        return [f"--{name.replace('_', '-')}" for name in given]


def _text(name: str, given: str) -> str:
    """Return a text of the command without white space around it, or raise `InputError` if it is none."""
    try:
        return answer_option_text(given) or ""
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
