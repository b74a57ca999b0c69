"""Options of asking one question."""

import string
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional, Suppress

from sciqa.core.errors import InputError
from sciqa.predict.options import ModelOptions
from sciqa.retrieval.options import FindOptions

SAMPLING = ("temperature", "sample_top_k", "top_p")
#: Sentences that an answer in words is written from. Of 36 questions of the packaged validation split, SmolLM2's answer
#: was nearest to the right option for 0.67 with the four nearest sentences of five passages, as with the best passage
#: whole, and for 0.44 with the best three; but four sentences also hold what the best passage lacks.
SENTENCES = 4


@dataclass(kw_only=True)
class AskOptions(FindOptions, ModelOptions):
    """A question and how it is answered; where it has options, as `retrieve` and `predict` would rank them."""

    question: Positional[str]
    """The question, before all options of the command."""
    options: tuple[str, ...] = ()
    """What to rank, 2 to 26 options in quotes; without any the answer is in words, by a causal model or T5."""
    context_passages: int | None = None
    """How many of them make the text that the reader gets; with --options 1."""
    context_sentences: int | None = None
    """Take this many sentences for it instead, of those passages the ones nearest to the question; without --options
    and any other --context option, 4 of all passages kept."""
    context_order: Literal["text", "nearest"] | None = None
    """Sentences as they follow each other in the passages (with --options), or the nearest first (without)."""
    max_new_tokens: int = 128
    """Most tokens of an answer in words."""
    num_beams: int = 1
    """Beams of its search; with more than one it is shown when it is whole, not word by word."""
    do_sample: bool = False
    """Draw its tokens; otherwise the likeliest ones are taken."""
    temperature: float | None = None
    """Divides the logits before a draw; this and the next two are as in transformers and the model's own by default."""
    sample_top_k: int | None = None
    """Draw from this many of the likeliest tokens."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the draws: the same seed gives the same answer."""
    accelerator: str = "auto"
    """`auto`: a GPU where this machine has one; `cpu`: none; `gpu`, or its kind: one that must be there."""
    # What builds an index or sizes a cluster says nothing here.
    address: Suppress[str | None] = None
    overwrite: Suppress[bool] = False
    num_cpus: Suppress[int | None] = None
    num_workers: Suppress[str] = "auto"
    passages: Suppress[str | None] = None
    factory: Suppress[str] = "Flat"
    metric: Suppress[str] = "inner-product"
    vector_type: Suppress[str] = "float32"
    train_vectors: Suppress[int] = 100_000
    stream: Suppress[bool] = False
    stream_questions: Suppress[int] = 1024
    stream_memory: Suppress[int] = 0
    engine: Suppress[str] = "torch"

    def __post_init__(self) -> None:
        """Fill the defaults that depend on the form of the answer; check the question, its options and the numbers."""
        sizes = (self.context_passages, self.context_sentences, self.context_tokens)
        if not self.options and sizes == (None, None, None):
            self.context_passages, self.context_sentences = self.top_k, SENTENCES
        self.context_passages = 1 if self.context_passages is None else self.context_passages
        self.context_order = self.context_order or ("text" if self.options else "nearest")
        super().__post_init__()
        self.question = self.question.strip()
        self.options = tuple(option.strip() for option in self.options)
        if not self.question:
            raise InputError("the question is empty; give it in quotes before all options")
        if len(self.options) == 1 or len(self.options) > len(string.ascii_uppercase):
            raise InputError(f"--options: {len(self.options)} given, 2 to 26 expected, or none for an answer in words")
        for number, option in enumerate(self.options):
            if not option or option in self.options[:number]:
                raise InputError(
                    f"--options: {option!r} is {'given twice' if option else 'empty'}; options must differ"
                )
        self.at_least(1, "max_new_tokens", "num_beams", "sample_top_k")
        for name in SAMPLING:
            flag, value = f"--{name.replace('_', '-')}", getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{flag}: {value} given, more than 0 expected")
            if value is not None and not self.do_sample:
                raise InputError(f"{flag}: shapes the draws of --do-sample; pass that too")
        if self.top_p is not None and self.top_p > 1:
            raise InputError(f"--top-p: {self.top_p} given, at most 1 expected")

    def as_row(self) -> dict:
        """Return the question as a row of the exam table."""
        lettered = dict(zip(string.ascii_uppercase, self.options, strict=False))
        return {"id": "asked", "prompt": self.question, "is_question": True, "context": None, "answer": None} | lettered
