"""The answers table: from the scores of a question's options, in every order they were given in, to its row."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.metrics import NOISE, average_precision_at_3, log_softmax, place_of_answer, settle_ties, softmax
from sciqa.exam.questions import Exam, options_of
from sciqa.exam.table import QuestionTable

#: Of what readers compute; raised with every change of it, so that answers made otherwise are not kept.
ANSWERS_FORMAT = 3
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ranking", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("probabilities", pa.list_(pa.float64())),
        ("scores", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("average_precision", pa.float64()),
        ("context_cut", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Scored:
    """A question read.

    Attributes:
        scores: of its options, in nats, shape (options,); probabilities are their softmax.
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
    return [Scored(settle_ties(_mean_scores(each), NOISE), number in cut) for number, each in of.items()]


def _mean_scores(scores: list[np.ndarray]) -> np.ndarray:
    """Return scores whose softmax is the mean of those of several, each of shape (options,)."""
    if len(scores) == 1:
        return scores[0]
    if not np.isfinite(scores).all():
        return np.full_like(scores[0], np.nan)  # a mean could hide it
    logs = np.sort([log_softmax(each) for each in scores], axis=0)
    most = logs[-1]
    return most + np.log(np.exp(logs - most).mean(axis=0))


def same_scores(scores: np.ndarray, keys: Sequence[Hashable]) -> np.ndarray:
    """Return scores, shape (options,), in which options with equal keys have the largest of theirs.

    So options that are the same text, or the same tokens, are tied, wherever in a batch each was computed.
    """
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    which = np.array([numbers[key] for key in keys])
    largest = np.full(len(numbers), -np.inf)
    np.maximum.at(largest, which, scores)
    return largest[which]


def open_answers(folder: str, exam: Exam | None = None) -> tuple[QuestionTable, dict]:
    """Return a finished answers table, and what it was made from.

    Args:
        folder: of the table.
        exam: whose questions it is read with; None for any.

    Raises:
        InputError: none is there, or it is of another exam, or another version of the program made it.
    """
    manifest = tables.read_manifest(folder, "predict", ANSWERS_FORMAT)
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


def write_answers(folder: str, part: int, questions: list[dict], scored: Sequence[Scored], by: str) -> None:
    """Write a shard of the answers table.

    Args:
        folder: of the table.
        part: number of the shard.
        questions: of the shard.
        scored: each of them, read.
        by: what scored them, for messages.

    Raises:
        InputError: see `answer_row`.
    """
    rows = [answer_row(*pair, by) for pair in zip(questions, scored, strict=True)]
    storage.write_table(tables.part_path(folder, part), pa.Table.from_pylist(rows, schema=SCHEMA))


def answer_row(question: dict, scored: Scored, by: str) -> dict:
    """Return a question's row of the answers table; what every reader answers goes through here.

    Tied options follow each other in an order that looks random and depends on nothing but what the question and they
    say, so that no letter is preferred.

    Args:
        question: row of the exam table.
        scored: the question read.
        by: what scored it, for messages.

    Raises:
        InputError: a score is not a finite number.
    """
    options = options_of(question)
    for letter, score in zip(options, scored.scores, strict=True):
        if not np.isfinite(score):
            raise InputError(
                f"question {question['id']!r}, option {letter}: {by} gives it the score {score}, a finite number "
                "expected; numbers in 16 bits overflow where a model was not made for them: pass --precision float32 "
                "(or bfloat16), for an embedder another --embed-backend"
            )
    scores = settle_ties(same_scores(np.asarray(scored.scores, float), list(options.values())))
    drawn = [hashlib.sha256(f"{question['prompt']}\n{text}".encode()).digest() for text in options.values()]
    ranking = [letter for *_, letter in sorted(zip(-scores, drawn, options, strict=True))]
    row = {
        "id": question["id"],
        "ranking": ranking,
        "prediction": " ".join(ranking[:3]),
        "probabilities": softmax(scores).tolist(),
        "scores": scores.tolist(),
        "answer": question["answer"],
        "average_precision": None,
        "context_cut": scored.cut,
    }
    if row["answer"]:
        row["average_precision"] = float(average_precision_at_3(*map(np.array, place_of_answer(row))))
    return row


def has_ties(row: dict) -> bool:
    """Whether the first three of a row's ranking follow from a tie."""
    falling = sorted(row["scores"], reverse=True)
    return any(first == second for first, second in pairwise(falling[:4]))


def entropy(probabilities: list[float]) -> float:
    """Return the entropy of an answer, as a share of that of a guess among as many options."""
    given = np.maximum(np.sort(probabilities), 1e-300)  # sorted, since rounding follows the order of a sum
    return float(-(given * np.log(given)).sum() / np.log(len(given)))


def second_to_first(probabilities: list[float]) -> float:
    """Return the second largest probability as a share of the largest; a temperature leaves its order as it is."""
    second, first = sorted(probabilities)[-2:]
    return second / first


#: Measures of how unsure an answer is, by the names that `--cascade-by` takes.
DOUBT = {"margin": second_to_first, "entropy": entropy}
