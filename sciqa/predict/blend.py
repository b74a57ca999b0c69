"""Blends: weighted pools of several readers' probabilities; weights can be fitted on questions with known answers.

A blend is a log-linear pool (Genest and Zidek 1986, section 3.2): the probability of an option is proportional to the
product of the readers' probabilities, each to the power of the reader's weight. The weights need not sum to 1, so they
also calibrate: with one reader, the weight is the inverse of a temperature (Guo et al. 2017, section 4.2).
"""

import hashlib
from string import ascii_uppercase

import numpy as np

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam.metrics import metric_scores, score_metrics
from sciqa.exam.probabilities import log_softmax, settle_probability_ties, softmax

#: Number of folds in cross-validation.
FOLDS = 5
#: Metrics that are said of a blend, and their names there.
SAID = {"map_at_3": "MAP@3", "log_loss": "log loss", "calibration_error": "calibration error"}


def fit_blend(folders: dict[str, str]) -> tuple[dict[str, float], str]:
    """Return the weights that `blend_weights` fits to several readers' answers, by reader, and their metrics in words.

    The metrics are cross-validated: each question is answered by weights that were fitted without it. Those of equal
    weights that sum to 1 stand beside them.

    Args:
        folders: folder of each reader's answers table, by reader name.

    Raises:
        InputError: the tables hold different questions, or fewer than `FOLDS` of them have a known answer.
    """
    tables = [_answered(folder) for folder in folders.values()]
    ids = [[row["id"] for row in rows] for rows in tables]
    for folder, names in zip(folders.values(), ids, strict=True):
        if len(names) < FOLDS or names != ids[0]:
            raise InputError(f"{folder}: at least {FOLDS} answers, to the same questions, with known answers expected")
    logs = [blend_scores(rows, list(folders.values())) for rows in zip(*tables, strict=True)]
    golds = np.array([ord(row["answer"]) - ord("A") for row in tables[0]])
    folds = np.arange(len(golds)) % FOLDS
    blended: list[np.ndarray] = [np.empty(0)] * len(golds)
    for fold in range(FOLDS):
        kept = np.flatnonzero(folds != fold)
        weights = blend_weights([logs[number] for number in kept], golds[kept])
        for number in np.flatnonzero(folds == fold):
            blended[number] = blend_log_linear(weights, logs[number])
    even = [each.mean(axis=0) for each in logs]
    said = f"cross-validated on {len(golds)} questions: {_figures(blended, golds)}; evenly: {_figures(even, golds)}"
    return dict(zip(folders, blend_weights(logs, golds).round(4).tolist(), strict=True)), said


def blend_scores(rows: tuple[dict, ...], tables: list[str], question: dict | None = None) -> np.ndarray:
    """Return log-likelihoods of one question's options in several answers tables, shape (readers, options).

    Each reader's values are relative to its likeliest option. A pool needs only ratios of probabilities, and as
    logarithms none of them underflows to 0.

    Args:
        rows: the question's row in each table.
        tables: folders of the tables, for messages.
        question: row of the exam table, if known.

    Raises:
        InputError: the tables differ in the number of options; also see `sciqa.exam.metrics.metric_scores`.
    """
    scores = [metric_scores(row, question, table) for row, table in zip(rows, tables, strict=True)]
    for each, row, table in zip(scores, rows, tables, strict=True):
        if len(each) != len(scores[0]):
            raise InputError(
                f"{table}, question {row['id']!r}: scores of {len(each)} options found, {len(scores[0])} expected, "
                f"as in {tables[0]}"
            )
    return np.array([each - each.max() for each in scores])


def blend_log_linear(weights: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Return the scores of a log-linear pool, shape (options,).

    Args:
        weights: weights of the readers, shape (readers,).
        logs: result of `blend_scores`.
    """
    return (weights[:, None] * logs).sum(axis=0)  # a matrix product may round each option differently


def blend_weights(logs: list[np.ndarray], golds: np.ndarray) -> np.ndarray:
    """Return the non-negative weights, shape (readers,), that maximise the likelihood of the right options.

    The likelihood is that of a conditional logit (McFadden 1974), which is concave. A normal prior of standard
    deviation 1 around equal weights keeps the weights finite where no question is answered wrong.

    Args:
        logs: log-likelihoods of each question, shape (readers, options).
        golds: index of the right option of each question, shape (questions,).
    """
    from scipy.optimize import minimize  # imported here because it is slow and few commands need it

    even = np.full(len(logs[0]), 1 / len(logs[0]))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = ((weights - even) ** 2).sum() / 2, weights - even
        for each, gold in zip(logs, golds, strict=True):
            pooled = blend_log_linear(weights, each)
            value -= log_softmax(pooled)[gold]
            slope = slope + each @ softmax(pooled) - each[:, gold]
        return value / len(logs), slope / len(logs)

    return minimize(loss, even, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(even)).x


def _answered(folder: str) -> list[dict]:
    """Return the rows with a known answer, ordered by a hash of the id, so that the ids alone decide the folds."""
    rows = [row for row in tables.read_table(folder).to_pylist() if row["answer"]]
    return sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())


def _figures(scores: list[np.ndarray], golds: np.ndarray) -> str:
    rows = [
        {"scores": settle_probability_ties(each), "probabilities": softmax(each), "answer": ascii_uppercase[gold]}
        for each, gold in zip(scores, golds, strict=True)
    ]
    figures = score_metrics(rows) or {}
    return ", ".join(f"{said} {figures[name]:.3f}" for name, said in SAID.items())
