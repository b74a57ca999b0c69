"""Measures of how uncertain an answer is."""

import numpy as np

from sciqa.core import tables
from sciqa.exam.metrics import metric_scores


def second_to_first_ratio(probabilities: list[float]) -> float:
    """Return the second largest probability divided by the largest.

    A temperature does not change how this measure orders the questions.
    """
    second, first = sorted(probabilities)[-2:]
    return second / first


def entropy(probabilities: list[float]) -> float:
    """Return the entropy of an answer, divided by that of a uniform guess over the same options."""
    given = np.maximum(np.sort(probabilities), 1e-300)  # sorted, since the order of a sum changes its rounding
    return float(-(given * np.log(given)).sum() / np.log(len(given)))


#: Measures of the uncertainty of an answer, by their `--cascade-by` names.
DOUBT = {"margin": second_to_first_ratio, "entropy": entropy}


def uncertainty_of_share(folder: str, share: float, measure: str) -> tuple[float, int]:
    """Return the lowest uncertainty among the given share of least certain answers, and how many answers reach it.

    Ties at that value make the number larger than the share.
    """
    answers = tables.read_table(folder).to_pylist()
    for row in answers:
        metric_scores(row, None, folder)
    doubts = np.array([DOUBT[measure](row["probabilities"]) for row in answers])
    least = float(np.sort(doubts)[-max(1, round(share * len(doubts)))])
    return least, int((doubts >= least).sum())
