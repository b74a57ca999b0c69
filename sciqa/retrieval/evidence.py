"""Evidence for the options of a question: the sentence of its context that decides on each, and the clause in it.

A linear model scores each pair of option and sentence by cosines of their vectors and by shared words. Its weights
were fitted by maximum likelihood to the annotated sentences of the packaged split `train`, with the packaged embedder
(`benchmarks/evidence.py`, which also measures it on the other splits).
"""

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from sciqa.corpus.chunking import split_sentences
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.baselines import baseline_words
from sciqa.retrieval.embedder import Kind

#: Weights of the features: cosine to the option and to the prompt, shares of the words of option and prompt.
WEIGHTS = np.array([6.6, 3.5, 4.5, 2.2])
#: A boundary between two clauses, and the fewest words that a clause is left with.
BOUNDARY, CLAUSE_WORDS = re.compile(r"(?<=[,;:)–—])\s+|\s+(?=[(–—])"), 4


def evidence_shared_words(question: str, option: str, texts: list[str]) -> np.ndarray:
    """Return the shares of the content words of an option and of its question that texts contain, shape (texts, 2)."""
    asked = [baseline_words(option), baseline_words(question)]
    held = map(baseline_words, texts)
    return np.array([[len(own & words) / max(1, len(own)) for own in asked] for words in held]).reshape(-1, 2)


def find_evidence(
    questions: list[dict], read: list[list[dict]], embed: Callable[[list[str], Kind], np.ndarray]
) -> list[list[dict] | None]:
    """Return the evidence for each option of each question, in the order of its letters; None without passages.

    Args:
        questions: rows of the exam table.
        read: for each question the passages that its context consists of, with `passage_id`, `title` and `text`.
        embed: returns the unit vectors of texts.

    Returns:
        For each option `passage_id`, `title`, `sentence`, `start` and `end` of the deciding clause in the sentence, and
        `score`, the logarithm of the sentence's share among those of the context.
    """
    sentences = [
        [(passage, text.strip()) for passage in passages for text in split_sentences(passage["text"]) if text.strip()]
        for passages in read
    ]
    pairs = [pair for pair in zip(questions, sentences, strict=True) if pair[1]]
    asked = [text for question, _ in pairs for text in (question["prompt"], *answer_options_of(question).values())]
    queries = _embed_once(asked, "query", embed)
    known = _embed_once([text for _, several in pairs for _, text in several], "passage", embed)
    return [_evidence(*pair, queries, known) if pair[1] else None for pair in zip(questions, sentences, strict=True)]


def _embed_once(texts: list[str], kind: Kind, embed: Callable[[list[str], Kind], np.ndarray]) -> dict[str, np.ndarray]:
    """Return the vector of each different text."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, embed(different, kind), strict=True)) if different else {}


def _evidence(
    question: dict, sentences: list[tuple[dict, str]], queries: dict[str, np.ndarray], known: dict[str, np.ndarray]
) -> list[dict]:
    """Return the evidence for the options of one question."""
    prompt, texts = question["prompt"], [text for _, text in sentences]
    vectors = np.array([known[text] for text in texts])
    found = []
    for option in answer_options_of(question).values():
        nearness = (vectors[:, None, :] * np.array([queries[option], queries[prompt]])).sum(axis=2)
        scores = np.hstack([nearness, evidence_shared_words(prompt, option, texts)]) @ WEIGHTS
        best = int(np.argmax(scores))
        passage, text = sentences[best]
        start, end = _clause(prompt, option, text)
        about = {"passage_id": passage["passage_id"], "title": passage["title"], "sentence": text}
        score = float(scores[best] - np.logaddexp.reduce(scores))
        found.append(about | {"start": start, "end": end, "score": score})
    return found


def _clause(prompt: str, option: str, sentence: str) -> tuple[int, int]:
    """Return the place of the clause that shares most words with the option; the whole sentence if none shares any."""
    places = split_evidence_clauses(sentence)
    scores = evidence_shared_words(prompt, option, [sentence[start:end] for start, end in places]) @ WEIGHTS[2:]
    return places[int(np.argmax(scores))] if scores.any() else (0, len(sentence))


def split_evidence_clauses(sentence: str) -> list[tuple[int, int]]:
    """Return the places (start, end) of a sentence's clauses; short ones are joined to the one before."""
    cuts = [0]
    for found in BOUNDARY.finditer(sentence):
        if len(sentence[cuts[-1] : found.start()].split()) >= CLAUSE_WORDS:
            cuts.append(found.end())
    if len(cuts) > 1 and len(sentence[cuts[-1] :].split()) < CLAUSE_WORDS:
        cuts.pop()
    places = [*cuts, len(sentence)]
    return [(start, start + len(sentence[start:end].rstrip())) for start, end in pairwise(places)]
