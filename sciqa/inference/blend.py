"""Blends: several readers' probabilities as one, weighted and calibrated on questions whose answers are known.

A blend is a log-linear pool (Genest and Zidek 1986, section 3.2): the probability of an option is proportional to the
product of the readers' probabilities, each to the power of the reader's weight. The weights need not sum to 1, so they
calibrate too: with one reader, the weight is the inverse of a temperature (Guo et al. 2017, section 4.2).
"""

from dataclasses import asdict, dataclass
from string import ascii_uppercase

import numpy as np

from sciqa import storage
from sciqa.errors import InputError
from sciqa.exam.metrics import rank, score

#: Parts of the questions; those of each are answered by weights fitted on the others.
FOLDS = 5
#: Least probability that counts, since a logarithm has none of zero.
LEAST = 1e-12


@dataclass(frozen=True)
class Fit:
    """Weights and how well they do.

    Attributes:
        weights: of each reader, by name.
        questions: that they were fitted on.
        map_at_3, log_loss, calibration_error: of all those questions, each answered by weights that were fitted without
            it.
        even: the same figures of even weights that sum to 1.
    """

    weights: dict[str, float]
    questions: int
    map_at_3: float
    log_loss: float
    calibration_error: float
    even: dict[str, float]

    def said(self) -> str:
        """Return the figures in words."""
        figures = [f"{name} {value:.3f}" for name, value in asdict(self).items() if name in self.even]
        before = [f"{name} {value:.3f}" for name, value in self.even.items()]
        said = f"cross-validated on {self.questions} questions: {', '.join(figures)}; evenly: {', '.join(before)}"
        return said.replace("map_at_3", "MAP@3").replace("_", " ")


def fit_blend(folders: dict[str, str]) -> Fit:
    """Return the weights of greatest likelihood for some readers' answers to the same questions.

    Args:
        folders: the answers table of each reader, by name.

    Raises:
        InputError: the tables are of unlike questions, or too few of these have an answer.
    """
    tables = [_answered(folder) for folder in folders.values()]
    ids = [[row["id"] for row in rows] for rows in tables]
    for folder, names in zip(folders.values(), ids, strict=True):
        if len(names) < FOLDS or names != ids[0]:
            raise InputError(f"{folder}: at least {FOLDS} answers, to the same questions, with known answers expected")
    logs = [log_probabilities(rows) for rows in zip(*tables, strict=True)]
    golds = np.array([ord(row["answer"]) - ord("A") for row in tables[0]])
    folds = np.arange(len(golds)) % FOLDS
    blended: list[np.ndarray] = [np.empty(0)] * len(golds)
    for fold in range(FOLDS):
        kept = np.flatnonzero(folds != fold)
        weights = pool_weights([logs[number] for number in kept], golds[kept])
        for number in np.flatnonzero(folds == fold):
            blended[number] = weights @ logs[number]
    even = [each.mean(axis=0) for each in logs]
    figures = _figures(blended, golds)
    weights = pool_weights(logs, golds).round(4).tolist()
    return Fit(dict(zip(folders, weights, strict=True)), len(golds), **figures, even=_figures(even, golds))


def log_probabilities(rows: tuple[dict, ...]) -> np.ndarray:
    """Return the log-probabilities of one question in several answers tables, shape (readers, options)."""
    return np.log(np.maximum([row["probabilities"] for row in rows], LEAST))


def pool_weights(logs: list[np.ndarray], golds: np.ndarray) -> np.ndarray:
    """Return non-negative weights, shape (readers,), by which the right options are likeliest.

    The likelihood is that of a conditional logit (McFadden 1974), which is concave; a normal prior of deviation 1
    around even weights keeps it finite where no question is answered wrong.

    Args:
        logs: log-probabilities of each question, shape (readers, options).
        golds: number of the right option of each question, shape (questions,).
    """
    from scipy.optimize import minimize  # slow to import, and few commands fit

    even = np.full(len(logs[0]), 1 / len(logs[0]))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = ((weights - even) ** 2).sum() / 2, weights - even
        for each, gold in zip(logs, golds, strict=True):
            pooled = weights @ each
            chances = np.exp(pooled - pooled.max())
            chances /= chances.sum()
            value -= np.log(max(chances[gold], LEAST))
            slope = slope + each @ chances - each[:, gold]
        return value / len(logs), slope / len(logs)

    return minimize(loss, even, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(even)).x


def _answered(folder: str) -> list[dict]:
    rows = storage.read_table(folder, ["id", "probabilities", "answer"]).to_pylist()
    return [row for row in rows if row["answer"]]


def _figures(scores: list[np.ndarray], golds: np.ndarray) -> dict[str, float]:
    rows = []
    for each, gold in zip(scores, golds, strict=True):
        ranking, probabilities = rank(list(ascii_uppercase[: len(each)]), each)
        rows.append({"ranking": ranking, "probabilities": probabilities, "answer": ascii_uppercase[gold]})
    figures = score(rows)
    return {name: figures[name] for name in ("map_at_3", "log_loss", "calibration_error")}
