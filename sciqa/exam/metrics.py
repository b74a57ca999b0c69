"""Scores of ranked answers: MAP@3 and accuracy with bootstrap intervals, log loss, calibration error.

Options with equal scores are tied, and any order of them is equally good. So each question counts with its average
over all these orders, and no figure depends on the letters of the options.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.probabilities import softmax

#: Bins of equal width of a reliability diagram.
BINS = 10
RESAMPLES = 10_000
#: Number of resampled counts held in memory at once.
HELD = 1 << 22


def metric_rank_range(scores: np.ndarray, number: int) -> tuple[int, int]:
    """Return the best rank, from 1, that an option can have, and the number of options tied with it, itself included.

    Args:
        scores: scores of all options, finite, shape (options,).
        number: index of the option.
    """
    return 1 + int((scores > scores[number]).sum()), int((scores == scores[number]).sum())


def average_precision_at_3(ranks: np.ndarray, tied: np.ndarray | int = 1) -> np.ndarray:
    """Return AP@3 of each question: 1, 1/2 or 1/3 where the correct option is ranked first to third, else 0.

    For an option that shares its rank r with t - 1 others, AP@3 is the mean over their orders. The option is equally
    likely at each rank from r to r + t - 1, so AP@3 is (1/t) * sum of 1/k over those ranks k that are at most 3
    (McSherry and Najork 2008 do the same for reciprocal rank and other measures).

    Args:
        ranks: best rank that the correct option can have, from 1; shape (questions,).
        tied: number of options that share it, the correct one included; shape (questions,).
    """
    ranks, tied = np.broadcast_arrays(ranks, tied)
    places = ranks[..., None] + np.arange(3)
    counted = (places <= 3) & (np.arange(3) < tied[..., None])
    return np.where(counted, 1 / places, 0.0).sum(axis=-1) / tied


def right_at_first(ranks: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Return the share of orders of tied options with the correct one first; see `average_precision_at_3`."""
    return np.where(ranks == 1, 1 / tied, 0.0)


def metrics_by_chance(options: Sequence[int]) -> tuple[float, float]:
    """Return the expected accuracy and MAP@3 of random guesses.

    With n options in random order, the right one is equally likely at each rank. So accuracy is 1/n, and MAP@3 is
    (1 + 1/2 + 1/3) / n for n of 3 or more.

    Args:
        options: number of options of each question.
    """
    numbers = np.asarray(options, float)
    precision = sum(np.where(numbers >= rank, 1 / rank, 0.0) for rank in (1, 2, 3)) / numbers
    return float((1 / numbers).mean()), float(precision.mean())


def metric_bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    The same call with the differences of two readers on the same questions gives the paired interval. The counts of
    the distinct values in a resample are multinomial, so a resample is one draw of these counts, and the order of the
    questions does not matter.

    Args:
        values: one figure per question, shape (questions,).
        seed: seed of the resampling, so that a rerun gives the same interval.
    """
    distinct, counts = np.unique(values, return_counts=True)
    return _interval_of(tuple(distinct.tolist()), tuple(counts.tolist()), seed)


@lru_cache(1 << 14)
def _interval_of(distinct: tuple[float, ...], counts: tuple[int, ...], seed: int) -> tuple[float, float]:
    """Return `metric_bootstrap_interval` from distinct values and their counts; cached, as many slices share these."""
    rng = np.random.default_rng(seed)
    questions = sum(counts)
    shares = np.array(counts) / questions
    step = max(1, HELD // len(distinct))
    drawn = [
        rng.multinomial(questions, shares, min(step, RESAMPLES - at)) @ np.array(distinct)
        for at in range(0, RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(drawn) / questions, [2.5, 97.5])
    return float(low), float(high)


def log_loss(probabilities: np.ndarray) -> float:
    """Return the mean of -ln p over the probabilities of the correct options, shape (questions,)."""
    return float(-np.log(np.maximum(probabilities, 1e-12)).mean())


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Return the points of a reliability diagram: questions in `BINS` by the probability of the first answer.

    Empty bins are left out.

    Args:
        confidence: probability of the option ranked first, shape (questions,).
        correct: whether that option is the correct one, shape (questions,); a share where several are tied.
    """
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(confidence[which == number].mean()),
            "accuracy": float(correct[which == number].mean()),
            "questions": int((which == number).sum()),
        }
        for number in range(BINS)
        if (which == number).any()
    ]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al. 2017, section 2), arguments as `calibration_bins`."""
    points = calibration_bins(confidence, correct)
    gaps = [point["questions"] * abs(point["confidence"] - point["accuracy"]) for point in points]
    return float(sum(gaps) / len(confidence))


def position_bias(letters: list[str], correct: np.ndarray) -> float | None:
    """Return the highest accuracy less the lowest, over the letters of the correct option; from 0 to 1.

    Letters with fewer than 20 questions are left out; if fewer than two letters remain, the result is None. A reader
    without any bias shows some too, by chance: about twice the standard error of a letter's accuracy.

    Args:
        letters: letter of the correct option of each question.
        correct: whether this option is ranked first, shape (questions,); a share if several are tied.
    """
    names, counts = np.unique(letters, return_counts=True)
    each = [correct[np.array(letters) == name].mean() for name, count in zip(names, counts, strict=True) if count >= 20]
    return float(max(each) - min(each)) if len(each) > 1 else None


def score_metrics(answers: list[dict]) -> dict[str, float | int | None] | None:
    """Return the metrics of rows of the answers table, None where no row has an answer.

    `ties` is the number of questions whose AP@3 depends on the order of tied options; `chance_…` are the scores of
    random guesses.

    Args:
        answers: rows with `scores`, `probabilities` and `answer`.
    """
    answers = [row for row in answers if row["answer"]]
    if not answers:
        return None
    ranks, tied = np.array([answer_rank_range(row) for row in answers]).T
    given = np.array([row["probabilities"][ord(row["answer"]) - ord("A")] for row in answers])
    confidence = np.array([max(row["probabilities"]) for row in answers])
    precision, correct = average_precision_at_3(ranks, tied), right_at_first(ranks, tied)
    chance_accuracy, chance_map_at_3 = metrics_by_chance([len(row["probabilities"]) for row in answers])
    map_low, map_high = metric_bootstrap_interval(precision)
    accuracy_low, accuracy_high = metric_bootstrap_interval(correct)
    return {
        "questions": len(answers),
        "ties": int(((tied > 1) & (ranks <= 3)).sum()),
        "map_at_3": float(precision.mean()),
        "map_at_3_low": map_low,
        "map_at_3_high": map_high,
        "accuracy": float(correct.mean()),
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "chance_map_at_3": chance_map_at_3,
        "chance_accuracy": chance_accuracy,
        "log_loss": log_loss(given),
        "calibration_error": expected_calibration_error(confidence, correct),
        "position_bias": position_bias([row["answer"] for row in answers], correct),
    }


def answer_rank_range(row: dict) -> tuple[int, int]:
    """Return the `metric_rank_range` of the correct option in a row of the answers table that has an answer."""
    return metric_rank_range(np.array(row["scores"]), ord(row["answer"]) - ord("A"))


def metric_scores(row: dict, question: dict | None, table: str) -> np.ndarray:
    """Return the scores, shape (options,), of a row of an existing answers table, after checking the row.

    Args:
        row: row of the table.
        question: the question that the row answers, if it is known.
        table: folder of the table, for messages.

    Raises:
        InputError: the row does not fit the question: it has scores or probabilities of more or fewer options, one is
            not finite, or the probabilities do not sum to 1 or are not those of the scores; or the table is of an
            earlier version, without scores.
    """
    where = f"{table}, question {row['id']!r}"
    again = "delete that folder and run `sciqa predict` for that reader again"
    if not row.get("scores"):
        raise InputError(f"{where}, column 'scores': none found, as in tables that an earlier version wrote; {again}")
    scores, probabilities = (np.array(row[name] or [], float) for name in ("scores", "probabilities"))
    options = len(answer_options_of(question)) if question else len(scores)
    for name, values in (("scores", scores), ("probabilities", probabilities)):
        if len(values) != options:
            raise InputError(
                f"{where}, column {name!r}: {len(values)} found, one for each of {options} options expected; {again}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{where}, column {name!r}: {values.tolist()} found, finite numbers expected; {again}")
    if not np.allclose(probabilities, softmax(scores), rtol=0, atol=1e-6):
        raise InputError(
            f"{where}, column 'probabilities': {probabilities.tolist()} found, which sum to {probabilities.sum():.6g}; "
            f"those of its scores, which sum to 1, expected; {again}"
        )
    return scores
