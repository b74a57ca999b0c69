"""Examples before each question (few-shot): fixed ones, or the nearest by the embedder; never copies of it."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from sciqa.core.cache import cached_folder
from sciqa.core.hashes import fingerprint
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.question_key import NEAR_COPY, question_key
from sciqa.retrieval.embedder import embed_one_by_one
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.queries import query_texts

#: Fixed examples that are held ready to replace those that are copies of a question.
SPARE = 16
VECTORS = "vectors.npy"


def balanced_shots(pool: list[dict], seed: int) -> list[int]:
    """Return the numbers of questions in random order, their right letters in turn while there are some of each."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(pool)).tolist()
    letters = rng.permutation(sorted({row["answer"] for row in pool})).tolist()
    taken: Counter[str] = Counter()
    turns = {}
    for number in drawn:
        letter = pool[number]["answer"]
        turns[number] = taken[letter], letters.index(letter)
        taken[letter] += 1
    return sorted(drawn, key=turns.__getitem__)


class ShotChooser:
    """Chooses the examples of each question.

    Args:
        pool: rows of an exam table, all with answers; for fixed examples in the order of `balanced_shots`.
        count: examples of a question.
        similar: whether the nearest are taken, instead of the first.
        revision: identifies the embedder's files.
        prefix: text before each text that is embedded.
        embed: arguments of `load_embedder`.
    """

    def __init__(self, pool: list[dict], count: int, similar: bool, revision: str, prefix: str, embed: dict) -> None:
        self.pool = pool if similar else pool[: count + SPARE]
        self.count, self.similar, self.prefix = count, similar, prefix
        self.embedder = load_embedder(**embed)
        self.keys = [question_key(row) for row in self.pool]
        about = [revision, prefix, embed["backend"], embed["device"], _texts(self.pool)]
        name = f"examples-{fingerprint(about)}"
        folder = cached_folder(name, lambda aside: np.save(aside / VECTORS, self._embed(self.pool)))
        self.vectors = np.load(folder / VECTORS)
        most = Counter(len(answer_options_of(row)) for row in self.pool).most_common(1)[0][0]
        self.most_of_a_letter = -(-count // most)

    def choose(self, questions: list[dict]) -> list[list[dict]]:
        """Return the examples of each question, the nearest of them last; fewer if the others are copies of it."""
        vectors = self._embed(questions)
        return [self._chosen(*pair) for pair in zip(questions, vectors, strict=True)]

    def _chosen(self, question: dict, vector: np.ndarray) -> list[dict]:
        cosines = (self.vectors * vector).sum(axis=1)  # not a matrix product, which may sum each row in another order
        key = question_key(question)
        usable = [at for at in range(len(self.pool)) if self.keys[at] != key and cosines[at] < NEAR_COPY]
        if self.similar:
            nearest = sorted(usable, key=lambda at: (-cosines[at], at))
            return [self.pool[at] for at in reversed(list(self._balanced(nearest)))]
        spare = [at for at in usable if at >= self.count]
        found = []
        for at in range(min(self.count, len(self.pool))):
            if at not in usable:  # another with the same answer, if there is one, takes its place
                spare.sort(key=lambda other: (self.pool[other]["answer"] != self.pool[at]["answer"], other))
                if not spare:
                    continue
                at = spare.pop(0)
            found.append(self.pool[at])
        return found

    def _balanced(self, order: list[int]) -> Iterator[int]:
        """Yield the first of some numbers, at most `most_of_a_letter` with the same answer."""
        taken: Counter[str] = Counter()
        for at in order:
            letter = self.pool[at]["answer"]
            if taken.total() < self.count and taken[letter] < self.most_of_a_letter:
                taken[letter] += 1
                yield at

    def _embed(self, questions: list[dict]) -> np.ndarray:
        """Return unit vectors of questions with their options, as the audit compares them."""
        names = [f"question {question['id']!r}" for question in questions]
        return embed_one_by_one(self.embedder, _texts(questions), prefix=self.prefix, kind="query", names=names)


def _texts(questions: list[dict]) -> list[str]:
    """Return the text of each question that is embedded: with its options."""
    return [text or "" for text in query_texts(questions, "whole")[0]]
