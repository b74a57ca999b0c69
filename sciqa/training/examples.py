"""Training examples: questions with their contexts, varied by epoch, and the order in which steps see them.

Everything follows from the seed and the number of a step, so that a run that was interrupted goes on with the
very batches it would have seen.
"""

import string
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.exam.questions import Exam, options_of, rotate_options
from sciqa.retrieval.contexts import context_text, open_contexts
from sciqa.training.options import FinetuneOptions

if TYPE_CHECKING:  # the driver checks questions without PyTorch
    from sciqa.models.scorer import Encoded

Encode = Callable[[int, int], tuple["Encoded", int]]
#: Questions are sorted by length within the questions of this many steps, so that batches waste little on padding.
STEPS_SORTED_TOGETHER = 16


class Examples:
    """Questions with answers and the text that was found for each.

    Args:
        exam: the questions.
        contexts: folder of their contexts table.
    """

    def __init__(self, exam: Exam, contexts: str) -> None:
        self.questions = storage.read_table(exam.path)
        self.contexts = open_contexts(contexts, exam)[0].read_all(exam, ["context", "passages"])

    def __len__(self) -> int:
        return len(self.questions)

    def plain(self, number: int) -> tuple[dict, str, int]:
        """Return a question as it stands, its context, and the number of the right option."""
        question = self.questions.slice(number, 1).to_pylist()[0]
        return question, self.contexts["context"][number].as_py(), _gold(question)

    def varied(self, number: int, epoch: int, options: FinetuneOptions) -> tuple[dict, str, int]:
        """Return `plain` with what the options vary: passages drawn, the gold one hidden, options rotated."""
        question, context, _ = self.plain(number)
        rng = np.random.default_rng([options.seed, epoch, number])
        if options.max_passages:
            context = self._draw_passages(question, number, rng, options)
        if options.rotate:
            question = rotate_options(question, int(rng.integers(len(options_of(question)))))
        return question, context, _gold(question)

    def sizes(self, with_context: bool = True) -> np.ndarray:
        """Return the characters of every question, a stand-in for tokens that needs no tokenizer."""
        named = [name for name in ("prompt", *string.ascii_uppercase) if name in self.questions.column_names]
        columns = [self.questions[name] for name in named] + [self.contexts["context"]] * with_context
        return sum(pc.fill_null(pc.utf8_length(column), 0).to_numpy() for column in columns)

    def _draw_passages(self, question: dict, number: int, rng: np.random.Generator, options: FinetuneOptions) -> str:
        passages = self.contexts["passages"][number].as_py()
        if rng.random() < options.hide_gold:
            passages = [passage for passage in passages if passage["title"] != question.get("title")]
        wanted = int(rng.integers(options.min_passages, options.max_passages + 1))
        return context_text(question, passages[:wanted])


class Order:
    """Which questions each step, worker and micro-batch sees, in tokens.

    Every epoch is a new permutation, and epochs follow each other without a seam: the step in which one ends is filled
    from the next, with other questions than those it has. So every step is full, no question is left out, each comes
    once an epoch, and a step holds different questions as long as there are enough. Within an epoch's
    `STEPS_SORTED_TOGETHER` steps, questions of like length stand together.

    Args:
        questions: how many there are.
        steps: of the whole run.
        batch_size: questions of a step.
        seed: of the permutations.
        encode: gives what is trained on for an epoch and the number of a question: tokens with a `length`, and the
            number of the right option.
    """

    def __init__(self, questions: int, steps: int, batch_size: int, seed: int, encode: Encode) -> None:
        self.questions, self.steps, self.batch_size, self.seed, self.encode = questions, steps, batch_size, seed, encode
        self._first, self._epoch = -1, 0
        self._permutation = self._drawn(0)

    def batch(self, step: int) -> "list[tuple[Encoded, int]]":
        """Return the questions of a step, numbered from 0, longest first."""
        first, last = self._together(step)
        if first != self._first:
            places = range(first * self.batch_size, last * self.batch_size)
            self._first, self._window = first, [self.encode(*self._at(place)) for place in places]
            self._window.sort(key=lambda pair: -pair[0].length)
        shuffled = np.random.default_rng([self.seed, first]).permutation(last - first)
        start = int(shuffled[step - first]) * self.batch_size
        return self._window[start : start + self.batch_size]

    def micro_batches(self, step: int, rank: int, world_size: int, size: int) -> "list[list[tuple[Encoded, int]]]":
        """Return what one worker computes in a step, `size` questions at a time."""
        batch = self.batch(step)
        return [batch[start : start + size] for start in range(rank * size, len(batch), size * world_size)]

    def _together(self, step: int) -> tuple[int, int]:
        """Return the first step, and the one after the last, of those that are sorted together with one.

        A step in which an epoch ends is by itself.
        """
        epoch = step * self.batch_size // self.questions
        begun = -(-epoch * self.questions // self.batch_size)
        ended = (epoch + 1) * self.questions // self.batch_size
        if not begun <= step < ended:
            return step, step + 1
        first = step - (step - begun) % STEPS_SORTED_TOGETHER
        return first, min(first + STEPS_SORTED_TOGETHER, ended, self.steps)

    def _at(self, place: int) -> tuple[int, int]:
        """Return the epoch and the number of the question at a place in the order of the whole run."""
        epoch, position = divmod(place, self.questions)
        if epoch < self._epoch:
            self._epoch, self._permutation = 0, self._drawn(0)
        while self._epoch < epoch:  # what an epoch begins with follows from how the one before it ends
            self._epoch += 1
            self._permutation = self._following(self._permutation, self._epoch)
        return epoch, int(self._permutation[position])

    def _drawn(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1 << 20, epoch]).permutation(self.questions)

    def _following(self, before: np.ndarray, epoch: int) -> np.ndarray:
        """Return the permutation of an epoch; where it fills a step, it begins with questions that step does not have.

        Args:
            before: permutation of the epoch before it.
            epoch: number of this one.
        """
        drawn = self._drawn(epoch)
        left = min(epoch * self.questions % self.batch_size, self.questions)
        if not left:
            return drawn
        others = drawn[~np.isin(drawn, before[-left:])][: self.batch_size - left]
        return np.concatenate([others, drawn[~np.isin(drawn, others)]])


def check_questions(*exams: tuple[pa.Table, str]) -> None:
    """Raise `InputError` where a question has no answer, or stands in two exams: its score would be known by heart.

    Args:
        exams: questions and the name of their exam, for each.
    """
    seen: dict[tuple, tuple[str, int]] = {}
    for questions, name in exams:
        check_answers(questions, name)
        texts = [(row["prompt"], *sorted(options_of(row).values())) for row in questions.to_pylist()]
        asked = [tuple(" ".join(text.casefold().split()) for text in question) for question in texts]
        for number, question in enumerate(asked, 1):
            if question in seen:
                other, row = seen[question]
                raise InputError(
                    f"{name}, row {number}: the same question as row {row} of {other}; what is trained on would "
                    "choose the best step, so leave it out of one of them"
                )
        seen |= {question: (name, number) for number, question in enumerate(asked, 1)}


def check_answers(questions: pa.Table, name: str) -> None:
    """Raise `InputError` where a question has no answer: nothing can be learnt from it, nor measured."""
    missing = [number for number, answer in enumerate(questions["answer"].to_pylist(), 1) if not answer]
    if missing:
        raise InputError(
            f"{name}, row {missing[0]}, column 'answer': empty, as in {len(missing)} of {len(questions)} rows; "
            "training and validation questions all need one"
        )


def _gold(question: dict) -> int:
    return list(options_of(question)).index(question["answer"])
