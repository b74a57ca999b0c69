"""Measures of how uncertain an answer is."""

import numpy as np


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
