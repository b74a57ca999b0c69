"""Rotations of a question's options, over which letter readers are averaged."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.probabilities import NOISE, log_softmax, settle_probability_ties
from sciqa.predict.scored_answers import ScoredAnswer


class Rotation(NamedTuple):
    """One question with one rotation of its options.

    Attributes:
        number: index of the question in its batch.
        by: number of places by which the options are rotated.
    """

    number: int
    by: int


def _mean_scores(scores: list[np.ndarray]) -> np.ndarray:
    """Return scores whose softmax is the mean of the softmaxes of the given ones, each of shape (options,)."""
    if len(scores) == 1:
        return scores[0]
    if not np.isfinite(scores).all():
        return np.full_like(scores[0], np.nan)  # a mean could hide a non-finite score
    logs = np.sort([log_softmax(each) for each in scores], axis=0)
    most = logs[-1]
    return most + np.log(np.exp(logs - most).mean(axis=0))


def mean_over_rotations(turns: Sequence[Rotation], scores: Sequence[np.ndarray], cut: set[int]) -> list[ScoredAnswer]:
    """Return one result per question, with probabilities averaged over the rotations of its options.

    Args:
        turns: result of `rotations_of`.
        scores: scores of each turn, in the rotated order of its options.
        cut: indices of the questions whose context was truncated.
    """
    of: dict[int, list[np.ndarray]] = {}
    for turn, each in zip(turns, scores, strict=True):
        of.setdefault(turn.number, []).append(np.roll(each, -turn.by))
    return [
        ScoredAnswer(settle_probability_ties(_mean_scores(each), NOISE), number in cut) for number, each in of.items()
    ]


def rotations_of(questions: list[dict], rotations: int) -> list[Rotation]:
    """Return `rotations` evenly spaced rotations of each question's options, or all where there are fewer."""
    turns = []
    for number, question in enumerate(questions):
        options = len(answer_options_of(question))
        orders = min(rotations, options)
        turns += [Rotation(number, order * options // orders) for order in range(orders)]
    return turns
