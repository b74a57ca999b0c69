"""Readers: from questions and their contexts to a score for every option."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from sciqa.corpus.windows import embedded_text
from sciqa.exam.questions import options_of, rotate_options
from sciqa.inference.answers import DOUBT, Scored, Turn, mean_turns, turns_of
from sciqa.inference.blend import log_probabilities
from sciqa.models.load import load_scorer
from sciqa.models.scorer import Encoded, Scorer, score_options
from sciqa.retrieval.embedder import load_embedder

#: Cosines lie close together; this is the scale that sentence-transformers trains them with.
COSINE_SCALE = 20.0


class Reader(Protocol):
    """Scores options."""

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """Return the scores of every question.

        Args:
            questions: rows of the exam table.
            found: for each, its row of every table that the reader takes: contexts, or others' answers.
        """


class ModelReader:
    """A language model ranks options by what the scorer of its family gives them.

    Args:
        tokens_per_batch: padded tokens that are computed at once.
        style: fields of `sciqa.models.format.Format` that differ from what the model was trained with.
        rotations: orders of the options, spread evenly, over which probabilities are averaged.
        model: further arguments of `sciqa.models.load.load_scorer`.
    """

    def __init__(self, tokens_per_batch: int, style: dict, rotations: int, **model: object) -> None:
        self.scorer, self.tokens_per_batch, self.rotations = load_scorer(**model), tokens_per_batch, rotations
        self.scorer.style = replace(self.scorer.style, **style)
        self.notes = [self.scorer.note] if self.scorer.note else []

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """See `Reader.score`; without contexts the reader answers closed-book."""
        turns, encoded = encode_turns(self.scorer, questions, found, self.rotations)
        scores = score_options(self.scorer, encoded, self.tokens_per_batch)
        cut = {turn.number for turn, each in zip(turns, encoded, strict=True) if each.cut}
        return mean_turns(turns, scores, cut)


def encode_turns(
    scorer: Scorer, questions: list[dict], found: list[tuple[dict, ...]], rotations: int
) -> tuple[list[Turn], list[Encoded]]:
    """Return questions, with contexts where they are given, in several orders of their options, and these in tokens."""
    texts = [rows[0]["context"] if rows else "" for rows in found]
    turns = turns_of(questions, rotations)
    return turns, [scorer.encode(rotate_options(questions[turn.number], turn.by), texts[turn.number]) for turn in turns]


class RetrievalReader:
    """No language model: an option scores the cosine of question and option to the nearest found passage."""

    def __init__(self, embed: dict, query_prefix: str, passage_prefix: str) -> None:
        self.embedder = load_embedder(**embed)
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
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
            scores.append(Scored(COSINE_SCALE * (options @ passages.T).max(axis=1)))
        return scores


class BlendReader:
    """No model of its own: the log-linear pool of what other readers answered."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = np.array(weights)

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """See `Reader.score`."""
        return [Scored(self.weights @ log_probabilities(rows)) for rows in found]


class CascadeReader:
    """Keeps what another reader answered where that was certain, and reads the rest itself.

    Args:
        measure: of doubt, by its name in `DOUBT`.
        least: of the doubts about answers that are not kept.
        reader: name of the reader of the rest.
        arguments: of that.
    """

    def __init__(self, measure: str, least: float, reader: str, arguments: dict) -> None:
        self.doubt, self.least, self.reader = DOUBT[measure], least, READERS[reader](**arguments)
        self.notes = getattr(self.reader, "notes", [])

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """See `Reader.score`; the last table of each question is the answers of the other reader."""
        scored = [Scored(log_probabilities(rows[-1:])[0]) for rows in found]
        unsure = [n for n, rows in enumerate(found) if self.doubt(rows[-1]["probabilities"]) >= self.least]
        if unsure:
            read = self.reader.score([questions[n] for n in unsure], [found[n][:-1] for n in unsure])
            for number, each in zip(unsure, read, strict=True):
                scored[number] = each
        return scored


READERS = {"model": ModelReader, "retrieval": RetrievalReader, "blend": BlendReader, "cascade": CascadeReader}
