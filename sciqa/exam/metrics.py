"""Scores of ranked answers: MAP@3 and accuracy with bootstrap intervals, log loss, calibration error."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def rank(letters: list[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return letters by falling score (ties in their order) and the softmax of the scores in option order."""
    shifted = np.exp(scores - scores.max())
    order = np.argsort(-scores, kind="stable")
    return [letters[number] for number in order], shifted / shifted.sum()


def average_precision_at_3(ranks: np.ndarray) -> np.ndarray:
    """Return AP@3 of each question: 1, 1/2 or 1/3 where the correct option is ranked first to third, else 0.

    Args:
        ranks: rank of the correct option, from 1; shape (questions,).
    """
    return np.where(ranks <= 3, 1.0 / np.maximum(ranks, 1), 0.0)


def chance(options: Sequence[int]) -> tuple[float, float]:
    """Return the accuracy and the MAP@3 that guesses have on average.

    Of n options in any order, the right one is as likely at each rank: 1/n, and (1 + 1/2 + 1/3) / n for n of 3 or more.

    Args:
        options: of each question, how many there are.
    """
    numbers = np.asarray(options, float)
    precision = sum(np.where(numbers >= rank, 1 / rank, 0.0) for rank in (1, 2, 3)) / numbers
    return float((1 / numbers).mean()), float(precision.mean())


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    The same call with the differences of two readers on the same questions gives the paired interval.

    Args:
        values: one figure per question, shape (questions,).
        seed: of the resampling, so that a rerun gives the same interval.
    """
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def log_loss(probabilities: np.ndarray) -> float:
    """Return the mean of -ln p over the probabilities given to the correct options, shape (questions,)."""
    return float(-np.log(np.maximum(probabilities, 1e-12)).mean())


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Return the points of a reliability diagram: questions grouped by the probability of the first answer.

    Args:
        confidence: probability of the option ranked first, shape (questions,).
        correct: whether that option is the correct one, shape (questions,).
        bins: number of bins of equal width; empty ones are left out.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(confidence[which == number].mean()),
            "accuracy": float(correct[which == number].mean()),
            "questions": int((which == number).sum()),
        }
        for number in range(bins)
        if (which == number).any()
    ]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error (Guo et al. 2017, section 2), arguments as `calibration_bins`."""
    points = calibration_bins(confidence, correct, bins)
    gaps = [point["questions"] * abs(point["confidence"] - point["accuracy"]) for point in points]
    return float(sum(gaps) / len(confidence))


def position_bias(letters: list[str], correct: np.ndarray) -> float | None:
    """Return by how much accuracy differs between the letters at which the correct option stands, from 0 to 1.

    The highest less the lowest; letters with fewer than 20 questions are left out, and with fewer than two others there
    is none. A reader without any bias shows some too, by chance: about twice the standard error of a letter's accuracy.

    Args:
        letters: of the correct option of each question.
        correct: whether it is ranked first, shape (questions,).
    """
    names, counts = np.unique(letters, return_counts=True)
    each = [correct[np.array(letters) == name].mean() for name, count in zip(names, counts, strict=True) if count >= 20]
    return float(max(each) - min(each)) if len(each) > 1 else None


def score(answers: list[dict]) -> dict[str, float | int | None] | None:
    """Return the metrics of rows of the answers table, None where no row has an answer."""
    answers = [row for row in answers if row["answer"]]
    if not answers:
        return None
    ranks = np.array([row["ranking"].index(row["answer"]) + 1 for row in answers])
    given = np.array([row["probabilities"][ord(row["answer"]) - ord("A")] for row in answers])
    confidence = np.array([max(row["probabilities"]) for row in answers])
    precision = average_precision_at_3(ranks)
    correct = (ranks == 1).astype(float)
    map_low, map_high = bootstrap_interval(precision)
    accuracy_low, accuracy_high = bootstrap_interval(correct)
    return {
        "questions": len(answers),
        "map_at_3": float(precision.mean()),
        "map_at_3_low": map_low,
        "map_at_3_high": map_high,
        "accuracy": float(correct.mean()),
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "log_loss": log_loss(given),
        "calibration_error": expected_calibration_error(confidence, correct),
        "position_bias": position_bias([row["answer"] for row in answers], correct),
    }
