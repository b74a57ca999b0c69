"""Blends: weighted pools of several readers' probabilities; weights can be fitted on questions with known answers.

A blend is a log-linear pool (Genest and Zidek 1986, section 3.2): the probability of an option is proportional to the
product of the readers' probabilities, each to the power of the reader's weight. The weights need not sum to 1, so they
also calibrate: with one reader, the weight is the inverse of a temperature (Guo et al. 2017, section 4.2).
"""

import hashlib
from dataclasses import asdict, dataclass
from string import ascii_uppercase

import numpy as np

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam.metrics import metric_scores, score_metrics
from sciqa.exam.probabilities import log_softmax, settle_probability_ties, softmax

#: Number of folds in cross-validation.
FOLDS = 5


@dataclass(frozen=True)
class BlendFit:
    """Fitted weights of a blend and their cross-validated metrics.

    Attributes:
        weights: weight of each reader, by name.
        questions: number of questions that the weights were fitted on.
        map_at_3, log_loss, calibration_error: cross-validated metrics; each question is answered by weights that were
            fitted without it.
        even: the same metrics for equal weights that sum to 1.
    """

    weights: dict[str, float]
    questions: int
    map_at_3: float
    log_loss: float
    calibration_error: float
    even: dict[str, float]

    def said(self) -> str:
        """Return the metrics as text."""
        figures = [f"{name} {value:.3f}" for name, value in asdict(self).items() if name in self.even]
        before = [f"{name} {value:.3f}" for name, value in self.even.items()]
        said = f"cross-validated on {self.questions} questions: {', '.join(figures)}; evenly: {', '.join(before)}"
        return said.replace("map_at_3", "MAP@3").replace("_", " ")


def fit_blend(folders: dict[str, str]) -> BlendFit:
    """Return the weights that `blend_weights` fits to several readers' answers to the same questions.

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
    figures = _figures(blended, golds)
    weights = blend_weights(logs, golds).round(4).tolist()
    return BlendFit(dict(zip(folders, weights, strict=True)), len(golds), **figures, even=_figures(even, golds))


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


#: Figures of a blend on the questions that its weights are fitted to.
FITTED = ("map_at_3", "log_loss", "calibration_error")


def _figures(scores: list[np.ndarray], golds: np.ndarray) -> dict[str, float]:
    rows = [
        {"scores": settle_probability_ties(each), "probabilities": softmax(each), "answer": ascii_uppercase[gold]}
        for each, gold in zip(scores, golds, strict=True)
    ]
    figures = score_metrics(rows) or {}
    return {name: value for name in FITTED if (value := figures[name]) is not None}
