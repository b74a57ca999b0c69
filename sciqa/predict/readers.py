"""Readers: from questions and their contexts to a score for every option."""

import re
from bisect import bisect_left
from dataclasses import replace
from typing import Protocol

import numpy as np

from sciqa.core.hub import load_tokenizer, longest_text
from sciqa.corpus.chunking import embedded_text
from sciqa.exam.metrics import NOISE, scores_of, settle_ties
from sciqa.exam.questions import options_of, rotate_options
from sciqa.models.load import load_scorer
from sciqa.models.scorer import Encoded, Scorer, score_options
from sciqa.predict.answers import DOUBT, Scored, Turn, mean_turns, same_scores, turns_of
from sciqa.predict.blend import pool, pooled_scores
from sciqa.retrieval.embedder import Kind, embed_alone
from sciqa.retrieval.load import load_embedder

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
        read = mean_turns(turns, scores, cut)
        return [
            replace(each, scores=same_scores(each.scores, self._tokens(question)))
            for question, each in zip(questions, read, strict=True)
        ]

    def _tokens(self, question: dict) -> list[tuple[int, ...]]:
        """Return the tokens of each option; signs that a tokenizer does not know leave no difference between them."""
        options = list(options_of(question).values())
        return list(map(tuple, self.scorer.tokenizer(options, add_special_tokens=False)["input_ids"]))


def encode_turns(
    scorer: Scorer, questions: list[dict], found: list[tuple[dict, ...]], rotations: int
) -> tuple[list[Turn], list[Encoded]]:
    """Return questions, with contexts where they are given, in several orders of their options, and these in tokens."""
    texts = [rows[0]["context"] if rows else "" for rows in found]
    turns = turns_of(questions, rotations)
    return turns, [scorer.encode(rotate_options(questions[turn.number], turn.by), texts[turn.number]) for turn in turns]


class RetrievalReader:
    """No language model: an option scores the cosine of question and option to the nearest found passage.

    Where both are more than the embedder reads, the question is cut from its end, and the option is kept.
    """

    def __init__(self, embed: dict, query_prefix: str, passage_prefix: str) -> None:
        self.embedder = load_embedder(**embed)
        self.notes = self.embedder.notes
        self.prefixes = {"query": query_prefix, "passage": passage_prefix}
        self.limit = longest_text(embed["model"])
        self.tokenizer = load_tokenizer(embed["model"]) if self.limit else None

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """See `Reader.score`."""
        return [self._score(*pair) for pair in zip(questions, found, strict=True)]

    def _score(self, question: dict, found: tuple[dict, ...]) -> Scored:
        (context,) = found
        letters = options_of(question)
        asked = [self._query(question["prompt"], option) for option in letters.values()]
        texts = [embedded_text(p["title"], p["section"], p["text"]) for p in context["passages"]]
        if not texts:
            return Scored(np.zeros(len(asked)))
        named = [f"question {question['id']!r} with option {letter}" for letter in letters]
        options = self._embed([text for text, _ in asked], "query", named)
        passages = self._embed(texts, "passage", [f"passage {p['passage_id']!r}" for p in context["passages"]])
        # A product of matrices would add up some options in another way than others.
        nearness = (options[:, None].astype(float) * passages).sum(axis=2).max(axis=1)
        return Scored(settle_ties(COSINE_SCALE * nearness, NOISE), any(cut for _, cut in asked))

    def _embed(self, texts: list[str], kind: Kind, names: list[str]) -> np.ndarray:
        return embed_alone(self.embedder, texts, prefix=self.prefixes[kind], kind=kind, names=names)

    def _query(self, prompt: str, option: str) -> tuple[str, bool]:
        """Return what is embedded of an option, and whether its prompt was cut."""
        whole = f"{prompt} {option}"
        if not self.limit or self._tokens(whole) <= self.limit:
            return whole, False
        ends = [found.end() for found in re.finditer(r"\S+", prompt)]
        kept = bisect_left(ends, True, key=lambda end: self._tokens(f"{prompt[:end]} {option}") > self.limit)
        return f"{prompt[: ends[kept - 1] if kept else 0]} {option}", True

    def _tokens(self, query: str) -> int:
        return len(self.tokenizer.encode(self.prefixes["query"] + query).ids)


class BlendReader:
    """No model of its own: the log-linear pool of what other readers answered.

    Args:
        weights: of each reader, by the folder of its answers.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self.tables, self.weights = list(weights), np.array(list(weights.values()))

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """See `Reader.score`."""
        pairs = zip(questions, found, strict=True)
        return [Scored(pool(self.weights, pooled_scores(rows, self.tables, question))) for question, rows in pairs]


class CascadeReader:
    """Keeps what another reader answered where that was certain, and reads the rest itself.

    Args:
        table: folder of the other's answers.
        measure: of doubt, by its name in `DOUBT`.
        least: of the doubts about answers that are not kept.
        reader: name of the reader of the rest.
        arguments: of that.
    """

    def __init__(self, table: str, measure: str, least: float, reader: str, arguments: dict) -> None:
        self.table, self.doubt, self.least = table, DOUBT[measure], least
        self.reader = READERS[reader](**arguments)
        self.notes = getattr(self.reader, "notes", [])

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[Scored]:
        """See `Reader.score`; the last table of each question is the answers of the other reader."""
        before = [rows[-1] for rows in found]
        pairs = zip(before, questions, strict=True)
        scored = [Scored(scores_of(row, question, self.table), row["context_cut"]) for row, question in pairs]
        unsure = [n for n, row in enumerate(before) if self.doubt(row["probabilities"]) >= self.least]
        if unsure:
            read = self.reader.score([questions[n] for n in unsure], [found[n][:-1] for n in unsure])
            for number, each in zip(unsure, read, strict=True):
                scored[number] = each
        return scored


READERS = {"model": ModelReader, "retrieval": RetrievalReader, "blend": BlendReader, "cascade": CascadeReader}
