"""Readers: classes that score the options of questions."""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from sciqa.corpus.chunking import titled_chunk
from sciqa.exam.answer_options import answer_options_of, rotate_answer_options
from sciqa.exam.metrics import metric_scores
from sciqa.exam.probabilities import NOISE, settle_probability_ties
from sciqa.models.scorer import EncodedForScorer, Scorer, score_options
from sciqa.predict.api import ApiReader
from sciqa.predict.baseline_reader import BaselineReader
from sciqa.predict.blend import blend_log_linear, blend_scores
from sciqa.predict.question_sources import join_question_sources
from sciqa.predict.reasoned import ReasonedReader
from sciqa.predict.rotations import Rotation, mean_over_rotations, rotations_of
from sciqa.predict.scored_answers import ScoredAnswer, tie_scored_answers
from sciqa.predict.scorer_reader import ScorerReader
from sciqa.predict.shots import ShotChooser
from sciqa.predict.uncertainty import DOUBT
from sciqa.retrieval.embedder import Kind, embed_one_by_one
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.query_limit import QueryLimit

#: Factor from cosine to score, since cosines lie close together; sentence-transformers trains with the same factor.
COSINE_SCALE = 20.0


class Reader(Protocol):
    """Interface of all readers."""

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """Return the scores of every question.

        Args:
            questions: rows of the exam table.
            found: for each question, its rows in the tables that the reader takes: contexts, or other readers' answers.
        """


class ModelReader(ScorerReader):
    """Reader that scores options with a language model.

    Args:
        style: fields of `sciqa.models.prompt_format.PromptFormat` that override those used in training.
        rotations: number of evenly spaced rotations of the options over which probabilities are averaged.
        given: arguments of `ScorerReader`.
    """

    def __init__(self, style: dict, rotations: int, **given: Any) -> None:  # noqa: ANN401
        super().__init__(**given)
        self.scorer.style, self.rotations = replace(self.scorer.style, **style), rotations

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `Reader.score`; without contexts the model reads the question alone (closed-book)."""
        turns, encoded = encode_for_reader(self.scorer, questions, found, self.rotations, self.chooser)
        scores = score_options(self.scorer, encoded, self.tokens_per_batch)
        cut = {turn.number for turn, each in zip(turns, encoded, strict=True) if each.cut}
        read = mean_over_rotations(turns, scores, cut)
        return [
            replace(each, scores=tie_scored_answers(each.scores, self._tokens(question)))
            for question, each in zip(questions, read, strict=True)
        ]

    def _tokens(self, question: dict) -> list[tuple[int, ...]]:
        """Return the tokens of each option, by which options that differ only in unknown characters are equal."""
        options = list(answer_options_of(question).values())
        return list(map(tuple, self.scorer.tokenizer(options, add_special_tokens=False)["input_ids"]))


def encode_for_reader(
    scorer: Scorer,
    questions: list[dict],
    found: list[tuple[dict, ...]],
    rotations: int,
    chooser: ShotChooser | None = None,
) -> tuple[list[Rotation], list[EncodedForScorer]]:
    """Return the turns of the questions (see `rotations_of`) and each in tokens, with context and examples if given."""
    asked = join_question_sources(questions, found, chooser)
    turns = rotations_of(questions, rotations)
    pairs = [(turn.by, *asked[turn.number]) for turn in turns]
    return turns, [scorer.encode(rotate_answer_options(question, by), context) for by, question, context in pairs]


class RetrievalReader:
    """Reader without a language model: the score is the scaled cosine of question and option to the nearest passage.

    Where question and option exceed the embedder's limit, the end of the question is cut and the option is kept.
    """

    def __init__(self, embed: dict, query_prefix: str, passage_prefix: str) -> None:
        self.embedder = load_embedder(**embed)
        self.notes = self.embedder.notes
        self.prefixes = {"query": query_prefix, "passage": passage_prefix}
        self.limit = QueryLimit(self.embedder, query_prefix)

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `Reader.score`."""
        return [self._score(*pair) for pair in zip(questions, found, strict=True)]

    def _score(self, question: dict, found: tuple[dict, ...]) -> ScoredAnswer:
        (context,) = found
        letters = answer_options_of(question)
        asked = [self.limit.cut(question["prompt"], f" {option}") for option in letters.values()]
        texts = [titled_chunk(p["title"], p["section"], p["text"]) for p in context["passages"]]
        if not texts:
            return ScoredAnswer(np.zeros(len(asked)))
        named = [f"question {question['id']!r} with option {letter}" for letter in letters]
        options = self._embed([text for text, _ in asked], "query", named)
        passages = self._embed(texts, "passage", [f"passage {p['passage_id']!r}" for p in context["passages"]])
        # A matrix product may round each option differently.
        nearness = (options[:, None].astype(float) * passages).sum(axis=2).max(axis=1)
        return ScoredAnswer(settle_probability_ties(COSINE_SCALE * nearness, NOISE), any(cut for _, cut in asked))

    def _embed(self, texts: list[str], kind: Kind, names: list[str]) -> np.ndarray:
        return embed_one_by_one(self.embedder, texts, prefix=self.prefixes[kind], kind=kind, names=names)


class BlendReader:
    """Reader without a model: the log-linear pool of other readers' answers.

    Args:
        weights: weight of each reader, by the folder of its answers.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self.tables, self.weights = list(weights), np.array(list(weights.values()))

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `Reader.score`."""
        pairs = zip(questions, found, strict=True)
        return [
            ScoredAnswer(blend_log_linear(self.weights, blend_scores(rows, self.tables, question)))
            for question, rows in pairs
        ]


class CascadeReader:
    """Reader that keeps another reader's certain answers and reads the other questions anew.

    Args:
        table: folder of the other reader's answers.
        measure: key of the uncertainty measure in `DOUBT`.
        least: threshold; questions with this uncertainty or more are read anew.
        reader: key in `READERS` of the reader that reads them.
        arguments: constructor arguments of that reader.
    """

    def __init__(self, table: str, measure: str, least: float, reader: str, arguments: dict) -> None:
        self.table, self.doubt, self.least = table, DOUBT[measure], least
        self.reader = READERS[reader](**arguments)
        self.notes = getattr(self.reader, "notes", [])

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `Reader.score`; the last row of each question is the other reader's answer."""
        before = [rows[-1] for rows in found]
        pairs = zip(before, questions, strict=True)
        scored = [ScoredAnswer(metric_scores(row, question, self.table), row["context_cut"]) for row, question in pairs]
        unsure = [n for n, row in enumerate(before) if self.doubt(row["probabilities"]) >= self.least]
        if unsure:
            read = self.reader.score([questions[n] for n in unsure], [found[n][:-1] for n in unsure])
            for number, each in zip(unsure, read, strict=True):
                scored[number] = each
        return scored


READERS = {
    "model": ModelReader,
    "reasoned": ReasonedReader,
    "api": ApiReader,
    "retrieval": RetrievalReader,
    "baseline": BaselineReader,
    "blend": BlendReader,
    "cascade": CascadeReader,
}
