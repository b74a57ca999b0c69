"""Weights for the mean of several readers' probabilities, fitted on questions whose answers are known."""

import numpy as np

from sciqa import storage
from sciqa.errors import InputError

ROUNDS = 200


def fit_weights(folders: dict[str, str]) -> dict[str, float]:
    """Return the weight of each reader by which their mean is likeliest to give the right options.

    Args:
        folders: the answers table of each reader, to the same questions.

    Raises:
        InputError: the tables are of unlike questions, or none has an answer.
    """
    columns, ids = [], None
    for folder in folders.values():
        rows = [
            row for row in storage.read_table(folder, ["id", "probabilities", "answer"]).to_pylist() if row["answer"]
        ]
        if not rows or [row["id"] for row in rows] != (ids or [row["id"] for row in rows]):
            raise InputError(f"{folder}: answers to the same questions, with known answers, expected for --blend-fit")
        ids = [row["id"] for row in rows]
        columns.append([row["probabilities"][ord(row["answer"]) - ord("A")] for row in rows])
    weights = mixture_weights(np.array(columns).T)
    return {name: round(float(weight), 4) for name, weight in zip(folders, weights, strict=True)}


def mixture_weights(given: np.ndarray) -> np.ndarray:
    """Return the weights of greatest likelihood, shape (readers,), which sum to 1.

    The expectation-maximisation of mixture weights (Dempster, Laird and Rubin 1977, section 4.3); the likelihood is
    concave in them, so where it starts does not matter.

    Args:
        given: probability that each reader gave to the right option, shape (questions, readers).
    """
    weights = np.full(given.shape[1], 1 / given.shape[1])
    for _ in range(ROUNDS):
        shares = weights * np.maximum(given, 1e-12)
        weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    return weights
