"""Options of the `ask` step."""

import string
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional, Suppress

from sciqa.core.errors import InputError
from sciqa.predict.options import ModelOptions
from sciqa.retrieval.options import FindOptions

SAMPLING = ("temperature", "sample_top_k", "top_p")
#: Default number of context sentences for an answer in words. On 36 questions of the packaged validation split,
#: SmolLM2's answer was nearest to the right option for a share of 0.67 with the four nearest sentences of five
#: passages, 0.67 with the best passage whole, and 0.44 with the best three. Four sentences add facts that the best
#: passage lacks.
SENTENCES = 4


@dataclass(kw_only=True)
class AskOptions(FindOptions, ModelOptions):
    """Options of the `ask` step; the options of a question are ranked as by `retrieve` and `predict`."""

    question: Positional[str]
    """The question, given before all options of the command."""
    options: tuple[str, ...] = ()
    """2 to 26 options to rank, in quotes; without any, a causal model or T5 answers in words."""
    context_passages: int | None = None  # type: ignore[assignment]  # filled in when created
    """Number of best passages in the context; by default 1 with --options."""
    context_sentences: int | None = None
    """Use this many sentences of those passages as the context, the nearest to the question; by default, without
    --options and other context sizes, 4 from all passages kept."""
    context_order: Literal["text", "nearest"] | None = None  # type: ignore[assignment]  # filled in too
    """Order of the sentences: as in the passages (default with --options), or the nearest first (default without)."""
    max_new_tokens: int = 128
    """Most tokens of an answer in words."""
    num_beams: int = 1
    """Beams of beam search; with more than one, the answer is shown when complete, not word by word."""
    do_sample: bool = False
    """Sample the tokens; otherwise the likeliest ones are taken."""
    temperature: float | None = None
    """Sampling temperature; by default, like the next two options, the model's own, else that of transformers."""
    sample_top_k: int | None = None
    """Sample from this many of the likeliest tokens."""
    top_p: float | None = None
    """Sample from the likeliest tokens with at least this total probability."""
    seed: int = 0
    """Random seed of sampling; the same seed gives the same answer."""
    accelerator: str = "auto"
    """`auto`: a GPU where this machine has one; `cpu`: none; `gpu` or a kind of GPU: require one."""
    # Hidden: options that build an index or size a cluster have no effect here.
    address: Suppress[str | None] = None
    overwrite: Suppress[bool] = False
    num_cpus: Suppress[int | None] = None
    num_workers: Suppress[Literal["auto"]] = "auto"
    passages: Suppress[str] = ""
    factory: Suppress[str] = "Flat"
    metric: Suppress[Literal["inner-product"]] = "inner-product"
    vector_type: Suppress[Literal["float32"]] = "float32"
    train_vectors: Suppress[int] = 100_000
    stream: Suppress[bool] = False
    stream_questions: Suppress[int] = 1024
    stream_memory: Suppress[int] = 0
    engine: Suppress[Literal["torch"]] = "torch"

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on the form of the answer, and check the values."""
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
