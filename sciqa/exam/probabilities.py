"""Probabilities of options from their scores, without the noise of rounding."""

import numpy as np

#: Scores that differ by less than this, in nats, differ only by rounding: of a model in float32 (`NOISE`), and of
#: later computations in float64 (`ROUNDING`).
NOISE, ROUNDING = 1e-5, 1e-12


def settle_probability_ties(scores: np.ndarray, noise: float = ROUNDING) -> np.ndarray:
    """Return scores, shape (options,), in which those that differ by no more than `noise` are made equal.

    In falling order, neighbours at most `noise` apart form a group, and all get the group's largest score. So the order
    of the options does not matter, and a third score that is nearer to one of two tied scores does not part them.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    first = np.concatenate([[True], ~(falling[:-1] - falling[1:] <= noise)])  # negated so that NaN stays NaN
    settled = np.empty_like(scores)
    settled[order] = falling[first][np.cumsum(first) - 1]
    return settled


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return the logarithms of `softmax`; they are finite even if a probability is too small for a float."""
    shifted = scores - scores.max()
    return shifted - np.log(np.sort(np.exp(shifted)).sum())


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax of scores: the probabilities of options, shape (options,)."""
    shifted = np.exp(scores - scores.max())
    return shifted / np.sort(shifted).sum()  # sorted, since rounding depends on the order of a sum
