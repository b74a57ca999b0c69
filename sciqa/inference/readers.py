"""Readers: from questions and their contexts to a score for every option."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from sciqa.corpus.windows import embedded_text
from sciqa.exam.questions import options_of
from sciqa.models.load import load_scorer
from sciqa.models.scorer import score_options
from sciqa.retrieval.embedder import load_embedder

#: Cosines lie close together; this is the scale that sentence-transformers trains them with.
COSINE_SCALE = 20.0


class Reader(Protocol):
    """Scores options; probabilities are the softmax of the scores."""

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[np.ndarray]:
        """Return an array of shape (options,) per question.

        Args:
            questions: rows of the exam table.
            found: for each, its row of every table that the reader takes: contexts, or others' answers.
        """


class ModelReader:
    """A language model ranks options by what the scorer of its family gives them.

    Args:
        tokens_per_batch: padded tokens that are computed at once.
        style: fields of `sciqa.models.format.Format` that differ from what the model was trained with.
        model: further arguments of `sciqa.models.load.load_scorer`.
    """

    def __init__(self, tokens_per_batch: int, style: dict, **model: object) -> None:
        self.scorer, self.tokens_per_batch = load_scorer(**model), tokens_per_batch
        self.scorer.style = replace(self.scorer.style, **style)

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[np.ndarray]:
        """See `Reader.score`; without contexts the reader answers closed-book."""
        texts = [rows[0]["context"] if rows else "" for rows in found]
        encoded = [self.scorer.encode(*pair) for pair in zip(questions, texts, strict=True)]
        return score_options(self.scorer, encoded, self.tokens_per_batch)


class RetrievalReader:
    """No language model: an option scores the cosine of question and option to the nearest found passage."""

    def __init__(self, embed: dict, query_prefix: str, passage_prefix: str) -> None:
        self.embedder = load_embedder(**embed)
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[np.ndarray]:
        """See `Reader.score`."""
        contexts = [context for (context,) in found]
        asked = [f"{self.query_prefix}{q['prompt']} {option}" for q in questions for option in options_of(q).values()]
        passages = [passage for context in contexts for passage in context["passages"]]
        texts = [self.passage_prefix + embedded_text(p["title"], p["section"], p["text"]) for p in passages]
        asked_vectors, found_vectors = iter(self.embedder.encode(asked)), iter(self.embedder.encode(texts))
        scores = []
        for question, context in zip(questions, contexts, strict=True):
            options = np.stack([next(asked_vectors) for _ in options_of(question)])
            passages = np.stack([next(found_vectors) for _ in context["passages"]])
            scores.append(COSINE_SCALE * (options @ passages.T).max(axis=1))
        return scores


class BlendReader:
    """No model of its own: the weighted mean of what other readers answered."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = np.array(weights)

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[np.ndarray]:
        """See `Reader.score`; the logarithms of the mean probabilities."""
        each = [np.array([row["probabilities"] for row in rows]) for rows in found]
        return [np.log(np.maximum(self.weights @ probabilities, 1e-300)) for probabilities in each]


READERS = {"model": ModelReader, "retrieval": RetrievalReader, "blend": BlendReader}
