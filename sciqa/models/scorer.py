"""Base class and helpers of all scorers: encode a question and score its options.

A scorer is a torch module over a transformers model. Its forward pass gives a score for every option of a batch of
questions, so that training differentiates the same computation that ranks options in prediction.
"""

import inspect
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sciqa.core.errors import InputError, QuestionError
from sciqa.corpus.chunking import split_sentences
from sciqa.models.attention_limits import position_limit
from sciqa.models.batch_layout import BatchLayout, batch_by_tokens
from sciqa.models.prompt_format import Normalise, PromptFormat


@dataclass(frozen=True)
class EncodedForScorer:
    """A tokenised question.

    Attributes:
        prompt: tokens of context and question.
        options: tokens of each option.
        divisors: divisor of each option's log-likelihood.
        counted: number of last tokens of each option that are scored; by default all.
        cut: whether the context was cut to fit the model.
        kept: number of characters of the context that are left of it, where that is known.
        segments: token type ids of each option, if the tokenizer gives them.
    """

    prompt: list[int]
    options: list[list[int]]
    divisors: list[float]
    counted: list[int] = field(default_factory=list)
    cut: bool = False
    segments: list[list[int]] | None = None
    kept: int | None = None

    def __post_init__(self) -> None:
        """Fill the default of `counted`."""
        if not self.counted:
            object.__setattr__(self, "counted", [len(option) for option in self.options])

    @property
    def length(self) -> int:
        """Number of tokens that this question adds to a batch."""
        return len(self.prompt) + sum(map(len, self.options))

    def only(self, number: int) -> "EncodedForScorer":
        """Return the question with only one of its options."""
        one = slice(number, number + 1)
        return replace(
            self,
            options=self.options[one],
            divisors=self.divisors[one],
            counted=self.counted[one],
            segments=self.segments and self.segments[one],
        )


class Scorer(nn.Module):
    """Model, perhaps wrapped by peft, with its tokenizer and question format: it scores the options of questions."""

    #: Name of the transformers class that loads such a model.
    auto_class: str
    #: Result of the layout test; None before it.
    batch_layout: BatchLayout | None = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, style: PromptFormat) -> None:
        super().__init__()
        self.model, self.tokenizer, self.style = model, tokenizer, style
        self.positions = position_limit(model, model.config.get_text_config())
        self.limit = min(self.positions, style.max_length or self.positions)

    def prove(self) -> BatchLayout:
        """Return the fastest batch layout in which the model scores each row as it scores it alone.

        Raises:
            InputError: there is none, or the model cannot score options.
        """
        raise NotImplementedError

    @property
    def layout(self) -> str:
        """How batches are laid out for the model; tested before the first batch."""
        if self.batch_layout is None:
            self.batch_layout = self.prove()
        return self.batch_layout.layout

    @property
    def note(self) -> str | None:
        """Message for the user about how this model is computed, if any."""
        return self.batch_layout.note if self.batch_layout else None

    @property
    def calls_vary(self) -> bool:
        """Whether batches differ in their number of model calls, which ZeRO-3 needs to be equal on all ranks."""
        raise NotImplementedError

    @property
    def switching(self) -> list[nn.Module]:
        """Modules that attend differently to long rows than to short ones, as in BigBird."""
        parts = [module for module in self.model.modules() if hasattr(module, "set_attention_type")]
        return [
            part for part in parts if getattr(getattr(part, "config", None), "attention_type", "") == "block_sparse"
        ]

    def reset(self) -> None:
        """Restore sparse attention in the modules of `switching`, which a short row turns off for all later rows."""
        for module in self.switching:
            module.set_attention_type("block_sparse")  # type: ignore[operator]  # a method of some modules

    @cached_property
    def takes(self) -> set[str]:
        """Names of the arguments that the model takes."""
        model = getattr(self.model, "get_base_model", lambda: self.model)()
        return set(inspect.signature(model.forward).parameters)

    @property
    def device(self) -> torch.device:
        """Device on which batches must be."""
        return next(self.model.parameters()).device

    def encode(self, question: dict, context: str) -> EncodedForScorer:
        """Tokenise a row of the exam table; if it is too long, only its context is cut.

        For templates, the row may also have `passages` and `examples`; see `PromptTemplate.render`.

        Raises:
            InputError: the question is too long without any context, or its template cannot be rendered.
        """
        raise NotImplementedError

    def forward(self, batch: Sequence[EncodedForScorer]) -> list[torch.Tensor]:
        """Return scores of shape (options,) per question: higher is likelier, softmax gives probabilities."""
        raise NotImplementedError

    @contextmanager
    def use_common_prefix(
        self, questions: Sequence[EncodedForScorer], budget: int
    ) -> Iterator[Sequence[EncodedForScorer]]:
        """Yield the questions as `batches` and `forward` take them within this context; see `PrefixScorer`."""
        yield questions

    def score_batches(self, batches: Sequence[Sequence[EncodedForScorer]]) -> Iterable[list[torch.Tensor]]:
        """Return the scores of each batch, as `forward` gives them."""
        return map(self, batches)

    def tokens(self, batch: Sequence[EncodedForScorer]) -> int:
        """Return the number of tokens computed for a batch; shared tokens count once."""
        return sum(question.length for question in batch)

    def padded_tokens(self, batch: Sequence[EncodedForScorer]) -> int:
        """Return `tokens` plus padding."""
        raise NotImplementedError

    def batches(self, questions: Sequence[EncodedForScorer], budget: int) -> list[list[int]]:
        """Group questions of similar length, as indices, into batches of at most `budget` padded tokens."""
        return batch_by_tokens([[number] for number in range(len(questions))], [q.length for q in questions], budget)

    def cut(
        self, question: dict, context: str, encode: Callable[[str], EncodedForScorer], room: int = 0
    ) -> EncodedForScorer:
        """Encode with as much context as fits, cut at its end, where the least similar passages are.

        `room` is the number of tokens that the model is to write.

        Raises:
            QuestionError: the question is too long without any context.
            InputError: nothing stands before what is written, or a token for which the model has no embedding.
        """

        def over(encoded: EncodedForScorer) -> int:
            return len(encoded.prompt) + max(map(len, encoded.options), default=0) + room - self.limit

        encoded = encode(context)
        if over(encoded) > 0:
            if (bare := over(encode(""))) > 0:
                raise too_long_for_scorer(question, self.limit + bare - room, self.limit, room)
            kept = fit_context_for_scorer(context, lambda given: over(encode(given)) <= 0)
            encoded = replace(encode(kept), cut=True, kept=len(kept))
        if not encoded.prompt and not encoded.options:
            raise InputError(
                f"question {question['id']!r}: --template {self.style.template_name} gives the model no tokens before "
                "what it writes; add some text to it"
            )
        _check_embedded(self, [encoded])
        return encoded


def fit_context_for_scorer(context: str, fits: Callable[[str], bool]) -> str:
    """Return as many first sentences of a context that is too long as fit, or first words if not even one fits.

    The empty text must fit.
    """
    sentences = np.cumsum([len(sentence) for sentence in split_sentences(context)]).tolist()
    words = [found.end() for found in re.finditer(r"\S+", context[: sentences[0] if sentences else 0])]
    return _longest(context, sentences, fits) or _longest(context, words, fits)


def _longest(text: str, ends: list[int], fits: Callable[[str], bool]) -> str:
    """Return the longest prefix that fits and stops at one of the ascending `ends`, or an empty text."""
    found = bisect_left(ends, True, key=lambda end: not fits(text[:end].rstrip()))
    return text[: ends[found - 1]].rstrip() if found else ""


def too_long_for_scorer(question: dict, tokens: int, limit: int, room: int = 0) -> QuestionError:
    """Return the error for a question that does not fit a model even without context; `room` is as for `cut`."""
    more = f" and {room} to write" if room else ""
    return QuestionError(
        f"question {question['id']!r}: {tokens} tokens without any context{more}, the model's limit is {limit}; "
        "shorten it or use a model with a longer context"
    )


def check_scorer_option(question: dict, options: dict[str, str], tokens: list[list[int]]) -> None:
    """Raise `QuestionError` for an option without tokens; `options` are texts by letter."""
    for letter, ids in zip(options, tokens, strict=True):
        if not ids:
            raise QuestionError(
                f"question {question['id']!r}, option {letter}: {options[letter]!r} gives the model no tokens; "
                "write it in characters that its tokenizer knows, or leave it out"
            )


def scorer_divisors(options: list[str], tokens: list[list[int]], by: Normalise) -> list[float]:
    """Return the divisor of each option's log-likelihood: its length in tokens or characters, or 1."""
    lengths = {"none": [1] * len(options), "tokens": map(len, tokens), "characters": map(len, options)}[by]
    return [float(max(1, length)) for length in lengths]


@torch.inference_mode()
def score_options(
    scorer: Scorer, questions: Sequence[EncodedForScorer], tokens_per_batch: int = 2048
) -> list[np.ndarray]:
    """Return the scores of all options, one array of shape (options,) per question, in the given order.

    Raises:
        InputError: a token for which the model has no embedding, or as `Scorer.score_batches`.
    """
    scores: list[np.ndarray] = [np.empty(0)] * len(questions)
    _check_embedded(scorer, questions)
    with scorer.use_common_prefix(questions, tokens_per_batch) as rest:
        batches = scorer.batches(rest, tokens_per_batch)
        found = scorer.score_batches([[rest[number] for number in batch] for batch in batches])
        for batch, each in zip(batches, found, strict=True):
            for number, score in zip(batch, each, strict=True):
                scores[number] = score.double().cpu().numpy()
    return scores


def _check_embedded(scorer: Scorer, questions: Sequence[EncodedForScorer]) -> None:
    """Raise `InputError` if a question has a token beyond the model's table of embeddings."""
    rows = None
    with suppress(NotImplementedError):  # CANINE has no table: it hashes characters
        rows = getattr(scorer.model.get_input_embeddings(), "num_embeddings", None)
    largest = max((max(row, default=0) for each in questions for row in (each.prompt, *each.options)), default=0)
    if rows is not None and largest >= rows:
        token = scorer.tokenizer.convert_ids_to_tokens(largest)
        raise InputError(
            f"{scorer.tokenizer.name_or_path}: the tokenizer has the token {token!r} ({largest}), the model only "
            f"{rows} embeddings; fetch tokenizer and model that belong together"
        )
