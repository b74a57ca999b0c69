"""The answers table: from the scores of a question's options, in every order they were given in, to its row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sciqa import storage
from sciqa.errors import InputError
from sciqa.exam.metrics import average_precision_at_3, rank
from sciqa.exam.questions import Exam, options_of
from sciqa.exam.table import QuestionTable

#: Of what readers compute; raised with every change of it, so that answers made otherwise are not kept.
ANSWERS_FORMAT = 2
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ranking", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("probabilities", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("average_precision", pa.float64()),
        ("context_cut", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Scored:
    """A question read.

    Attributes:
        scores: of its options, shape (options,); probabilities are their softmax.
        cut: whether its context was cut to fit the model.
    """

    scores: np.ndarray
    cut: bool = False


class Turn(NamedTuple):
    """A question with its options in one order.

    Attributes:
        number: of the question among those read together.
        by: places by which its options are rotated.
    """

    number: int
    by: int


def turns_of(questions: list[dict], rotations: int) -> list[Turn]:
    """Return every question in a number of orders of its options, spread evenly, or in all where they are fewer."""
    turns = []
    for number, question in enumerate(questions):
        options = len(options_of(question))
        orders = min(rotations, options)
        turns += [Turn(number, order * options // orders) for order in range(orders)]
    return turns


def mean_turns(turns: Sequence[Turn], scores: Sequence[np.ndarray], cut: set[int]) -> list[Scored]:
    """Return the questions of `turns_of` read, with probabilities averaged over the orders of their options.

    Args:
        turns: question by question.
        scores: of each turn, in its own order of the options.
        cut: numbers of the questions whose context was cut.
    """
    of: dict[int, list[np.ndarray]] = {}
    for turn, each in zip(turns, scores, strict=True):
        of.setdefault(turn.number, []).append(np.roll(each, -turn.by))
    return [Scored(_mean_scores(each), number in cut) for number, each in of.items()]


def _mean_scores(scores: list[np.ndarray]) -> np.ndarray:
    """Return scores whose softmax is the mean of those of several, each of shape (options,)."""
    if len(scores) == 1:
        return scores[0]
    shifted = np.exp(np.array(scores) - np.max(scores, axis=1, keepdims=True))
    return np.log(np.maximum((shifted / shifted.sum(axis=1, keepdims=True)).mean(axis=0), 1e-300))


def open_answers(folder: str, exam: Exam | None = None) -> tuple[QuestionTable, dict]:
    """Return a finished answers table, and what it was made from.

    Args:
        folder: of the table.
        exam: whose questions it is read with; None for any.

    Raises:
        InputError: none is there, or it is of another exam, or another version of the program made it.
    """
    manifest = storage.read_manifest(folder, "predict", ANSWERS_FORMAT)
    if exam and manifest["inputs"]["exam"] != exam.sha256:
        raise InputError(f"{folder}: answers to another exam; run `sciqa predict` on this one first")
    return QuestionTable(folder, manifest["rows"]), manifest["inputs"]


def read_found(sources: Sequence[QuestionTable], questions: list[dict], first: int) -> list[tuple[dict, ...]]:
    """Return for each of some questions its row of every table that is read with it.

    Args:
        sources: those tables.
        questions: that follow each other in the exam.
        first: number of the first of them there, from 0.
    """
    tables = [source.read(questions, first) for source in sources]
    return list(zip(*tables, strict=True)) if tables else [()] * len(questions)


def write_answers(folder: str, part: int, questions: list[dict], scored: Sequence[Scored]) -> None:
    """Write a shard of the answers table."""
    rows = [_answer_row(*pair) for pair in zip(questions, scored, strict=True)]
    storage.write_table(storage.part_path(folder, part), pa.Table.from_pylist(rows, schema=SCHEMA))


def _answer_row(question: dict, scored: Scored) -> dict:
    ranking, probabilities = rank(list(options_of(question)), scored.scores)
    answer, precision = question["answer"], None
    if answer:
        precision = float(average_precision_at_3(np.array(ranking.index(answer) + 1)))
    return {
        "id": question["id"],
        "ranking": ranking,
        "prediction": " ".join(ranking[:3]),
        "probabilities": probabilities.tolist(),
        "answer": answer,
        "average_precision": precision,
        "context_cut": scored.cut,
    }


def entropy(probabilities: list[float]) -> float:
    """Return the entropy of an answer, as a share of that of a guess among as many options."""
    given = np.maximum(probabilities, 1e-300)
    return float(-(given * np.log(given)).sum() / np.log(len(given)))


def second_to_first(probabilities: list[float]) -> float:
    """Return the second largest probability as a share of the largest; a temperature leaves its order as it is."""
    second, first = sorted(probabilities)[-2:]
    return second / first


#: Measures of how unsure an answer is, by the names that `--cascade-by` takes.
DOUBT = {"margin": second_to_first, "entropy": entropy}
