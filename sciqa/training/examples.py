"""Training examples: questions with their contexts, varied by epoch, and the order in which steps see them.

Everything depends only on the seed and the step number, so that an interrupted run resumes with the same batches that
it would have seen.
"""

import hashlib
import json
import string
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of, rotate_answer_options
from sciqa.exam.question_key import question_keys_with_context
from sciqa.retrieval.contexts import context_text
from sciqa.training.options import FinetuneOptions

if TYPE_CHECKING:  # the driver checks questions without PyTorch
    from sciqa.models.scorer import EncodedForScorer

Encode = Callable[[int, int], tuple["EncodedForScorer", int]]
#: Questions are sorted by length within this many steps, so that batches need little padding.
STEPS_SORTED_TOGETHER = 16


class Examples:
    """Questions with answers and their retrieved contexts.

    Args:
        table: a row for each question, as `sciqa.training.example_files` writes them; it may be mapped from a file.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def plain(self, number: int) -> tuple[dict, str, int]:
        """Return a question with the passages found for it, its context, and the index of the right option."""
        row = self.table.slice(number, 1).to_pylist()[0]
        question = row["question"] | {"passages": row["passages"] or []}
        return question, row["context"], _gold(question)

    def varied(self, number: int, epoch: int, options: FinetuneOptions) -> tuple[dict, str, int]:
        """Return `plain` with random changes, as configured: passages drawn, gold passage hidden, options rotated."""
        question, context, _ = self.plain(number)
        rng = np.random.default_rng([options.seed, epoch, number])
        if options.max_passages:
            context = _draw_passages(question, rng, options)
        if options.rotate:
            question = rotate_answer_options(question, int(rng.integers(len(answer_options_of(question)))))
        return question, context, _gold(question)

    def sizes(self, with_context: bool = True) -> np.ndarray:
        """Return the length of every question in characters, an estimate that needs no tokenizer."""
        questions = self.table["question"]
        named = {field.name for field in questions.type} & {"prompt", *string.ascii_uppercase}
        columns = [pc.struct_field(questions, name) for name in sorted(named)] + [self.table["context"]] * with_context
        return sum(pc.fill_null(pc.utf8_length(column), 0).to_numpy() for column in columns)


def _draw_passages(question: dict, rng: np.random.Generator, options: FinetuneOptions) -> str:
    passages = question["passages"]
    if rng.random() < options.hide_gold:
        passages = [passage for passage in passages if passage["title"] != question.get("title")]
    wanted = int(rng.integers(options.min_passages, options.max_passages + 1))
    return context_text(question, passages[:wanted])


class ExampleOrder:
    """Order of questions: which tokenised questions each step, worker and micro-batch gets.

    Every epoch is a new permutation. The step in which an epoch ends is filled with questions of the next epoch that it
    does not have yet. So every step is full, each question comes once per epoch, and a step has no question twice as
    long as there are enough. Within `STEPS_SORTED_TOGETHER` steps of an epoch, questions of similar length are batched
    together.

    Args:
        questions: number of questions.
        steps: number of steps of the whole run.
        batch_size: questions per step.
        seed: seed of the permutations.
        encode: returns the training example for an epoch and a question index: tokens with a `length`, and the index
            of the right option.
    """

    def __init__(self, questions: int, steps: int, batch_size: int, seed: int, encode: Encode) -> None:
        self.questions, self.steps, self.batch_size, self.seed, self.encode = questions, steps, batch_size, seed, encode
        self._first, self._epoch = -1, 0
        self._permutation = self._drawn(0)

    def batch(self, step: int) -> "list[tuple[EncodedForScorer, int]]":
        """Return the questions of a step (counted from 0), longest first."""
        first, last = self._together(step)
        if first != self._first:
            places = range(first * self.batch_size, last * self.batch_size)
            self._first, self._window = first, [self.encode(*self._at(place)) for place in places]
            self._window.sort(key=lambda pair: -pair[0].length)
        shuffled = np.random.default_rng([self.seed, first]).permutation(last - first)
        start = int(shuffled[step - first]) * self.batch_size
        return self._window[start : start + self.batch_size]

    def micro_batches(
        self, step: int, rank: int, world_size: int, size: int
    ) -> "list[list[tuple[EncodedForScorer, int]]]":
        """Return the micro-batches of one worker in a step, of `size` questions each."""
        batch = self.batch(step)
        return [batch[start : start + size] for start in range(rank * size, len(batch), size * world_size)]

    def _together(self, step: int) -> tuple[int, int]:
        """Return the range of steps that are sorted together with this one: first step, and step after the last.

        A step in which an epoch ends is sorted alone.
        """
        epoch = step * self.batch_size // self.questions
        begun = -(-epoch * self.questions // self.batch_size)
        ended = (epoch + 1) * self.questions // self.batch_size
        if not begun <= step < ended:
            return step, step + 1
        first = step - (step - begun) % STEPS_SORTED_TOGETHER
        return first, min(first + STEPS_SORTED_TOGETHER, ended, self.steps)

    def _at(self, place: int) -> tuple[int, int]:
        """Return the epoch and question index at a place in the order of the whole run."""
        epoch, position = divmod(place, self.questions)
        if epoch < self._epoch:
            self._epoch, self._permutation = 0, self._drawn(0)
        while self._epoch < epoch:  # the start of an epoch depends on the end of the one before
            self._epoch += 1
            self._permutation = self._following(self._permutation, self._epoch)
        return epoch, int(self._permutation[position])

    def _drawn(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1 << 20, epoch]).permutation(self.questions)

    def _following(self, before: np.ndarray, epoch: int) -> np.ndarray:
        """Return the permutation that follows; if it fills up a step, it starts with questions new to that step."""
        drawn = self._drawn(epoch)
        left = min(epoch * self.questions % self.batch_size, self.questions)
        if not left:
            return drawn
        others = drawn[~np.isin(drawn, before[-left:])][: self.batch_size - left]
        return np.concatenate([others, drawn[~np.isin(drawn, others)]])


def check_training_examples(*exams: tuple[pa.Table, str]) -> None:
    """Raise `InputError` if a question has no answer, or is in two exams: memorising would then give a good score.

    Each exam is a pair of its questions and its name. Questions about different contexts of the exam are not the same.
    """
    seen: dict[tuple, tuple[str, int]] = {}
    for questions, name in exams:
        check_example_answers(questions, name)
        asked = [_keys(row) for row in tables.table_rows(questions)]
        for number, (_, keys) in enumerate(asked, 1):
            if again := [seen[key] for key in keys if key in seen]:
                other, row = again[0]
                raise InputError(
                    f"{name}, row {number}: the same question as row {row} of {other}; what is trained on would "
                    "choose the best step, so leave it out of one of them"
                )
        seen |= {key: (name, number) for number, (keys, _) in enumerate(asked, 1) for key in keys}


def _keys(question: dict) -> tuple[list[tuple], list[tuple]]:
    """Return `question_keys_with_context` of prompt and options, of which order, case and spaces do not matter."""
    texts = (question["prompt"], *sorted(answer_options_of(question).values()))
    digest = hashlib.sha256(json.dumps([" ".join(text.casefold().split()) for text in texts]).encode()).digest()
    return question_keys_with_context(digest, question.get("context"))


def check_example_answers(questions: pa.Table, name: str) -> None:
    """Raise `InputError` if a question has no answer, which training and validation need."""
    missing = [number for number, answer in enumerate(questions["answer"].to_pylist(), 1) if not answer]
    if missing:
        raise InputError(
            f"{name}, row {missing[0]}, column 'answer': empty, as in {len(missing)} of {len(questions)} rows; "
            "training and validation questions all need one"
        )


def _gold(question: dict) -> int:
    return list(answer_options_of(question)).index(question["answer"])
