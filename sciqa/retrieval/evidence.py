"""Evidence for the options of a question: the sentence of its context that decides on each, and the clause in it.

A linear model scores each pair of option and sentence by the cosines of their vectors and by shared words. Its weights
were fitted by maximum likelihood to the annotated sentences of the packaged split `train`, with the packaged embedder
(`benchmarks/evidence.py`, which also measures it on the other splits).
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sciqa.corpus.chunking import split_sentences
from sciqa.exam.baselines import content_words
from sciqa.exam.questions import options_of
from sciqa.retrieval.embedder import Kind

#: Weights of the features of `features`, in their order.
WEIGHTS = np.array([4.0, 5.9, 1.7, 4.4, 1.5])
#: A boundary between two clauses, and the fewest words that a clause is left with.
BOUNDARY, CLAUSE_WORDS = re.compile(r"(?<=[,;:)–—])\s+|\s+(?=[(–—])"), 4


class Asked(NamedTuple):
    """A question with one of its options, and their vectors, shape (dimension,).

    Attributes:
        prompt: text of the question.
        option: text of the option.
        vectors: vectors of prompt and option together, of the option, and of the prompt, shape (3, dimension).
    """

    prompt: str
    option: str
    vectors: np.ndarray


def features(asked: Asked, texts: list[str], vectors: np.ndarray) -> np.ndarray:
    """Return the features of sentences as evidence, shape (texts, 5).

    They are the cosines to prompt with option, to the option and to the prompt, and the shares of the content words of
    the option and of the prompt that the sentence contains.

    Args:
        asked: the question with an option.
        texts: sentences or clauses.
        vectors: their unit vectors, shape (texts, dimension).
    """
    nearness = (vectors[:, None, :] * asked.vectors).sum(axis=2)
    words = [content_words(text) for text in texts]
    shares = [
        [len(own & held) / max(1, len(own)) for own in map(content_words, (asked.option, asked.prompt))]
        for held in words
    ]
    return np.hstack([nearness, np.array(shares).reshape(-1, 2)])


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
        `score`, the sentence's score in nats relative to others of the context.
    """
    sentences = [
        [(passage, text.strip()) for passage in passages for text in split_sentences(passage["text"]) if text.strip()]
        for passages in read
    ]
    pairs = [pair for pair in zip(questions, sentences, strict=True) if pair[1]]
    options = [(question, option) for question, _ in pairs for option in options_of(question).values()]
    queries = _embed_once([text for each in options for text in _texts(*each)], "query", embed)
    known = _embed_once([text for _, several in pairs for _, text in several], "passage", embed)

    def choose(question: dict, several: list[tuple[dict, str]]) -> list[dict]:
        return [_choose(_asked(question, option, queries), several, known) for option in options_of(question).values()]

    found = [choose(*pair) if pair[1] else None for pair in zip(questions, sentences, strict=True)]
    chosen = [each for several in found for each in several or ()]
    clauses = {each["sentence"]: split_clauses(each["sentence"]) for each in chosen}
    known |= _embed_once([text[a:b] for text, places in clauses.items() for a, b in places], "passage", embed)
    for each, asked in zip(chosen, options, strict=True):
        parts = [((a, b), each["sentence"][a:b]) for a, b in clauses[each["sentence"]]]
        best, _ = _best(_asked(*asked, queries), [text for _, text in parts], known)
        each["start"], each["end"] = parts[best][0]
    return found


def _embed_once(texts: list[str], kind: Kind, embed: Callable[[list[str], Kind], np.ndarray]) -> dict[str, np.ndarray]:
    """Return the vector of each different text."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, embed(different, kind), strict=True)) if different else {}


def _texts(question: dict, option: str) -> tuple[str, str, str]:
    return f"{question['prompt']} {option}", option, question["prompt"]


def _asked(question: dict, option: str, vectors: dict[str, np.ndarray]) -> Asked:
    return Asked(question["prompt"], option, np.array([vectors[text] for text in _texts(question, option)]))


def _best(asked: Asked, texts: list[str], known: dict[str, np.ndarray]) -> tuple[int, float]:
    """Return the index of the text that is the best evidence, and the logarithm of its share among all."""
    scores = features(asked, texts, np.array([known[text] for text in texts])) @ WEIGHTS
    best = int(np.argmax(scores))
    return best, float(scores[best] - np.logaddexp.reduce(scores))


def _choose(asked: Asked, sentences: list[tuple[dict, str]], known: dict[str, np.ndarray]) -> dict:
    best, score = _best(asked, [text for _, text in sentences], known)
    passage, text = sentences[best]
    return {"passage_id": passage["passage_id"], "title": passage["title"], "sentence": text, "score": score}


def split_clauses(sentence: str) -> list[tuple[int, int]]:
    """Return the places (start, end) of a sentence's clauses; short ones are joined to the one before."""
    cuts = [0]
    for found in BOUNDARY.finditer(sentence):
        if len(sentence[cuts[-1] : found.start()].split()) >= CLAUSE_WORDS:
            cuts.append(found.end())
    if len(cuts) > 1 and len(sentence[cuts[-1] :].split()) < CLAUSE_WORDS:
        cuts.pop()
    places = [*cuts, len(sentence)]
    return [(start, start + len(sentence[start:end].rstrip())) for start, end in pairwise(places)]
