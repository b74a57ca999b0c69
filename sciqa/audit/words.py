"""Word n-grams of an exam: normalised words, the same question again, and runs of words that other texts share.

The exam's words are held as numbers; other texts are streamed past them. A run is a maximal sequence of consecutive
words that stands in a question and in another text. Runs of at least `SEED` words are found exactly (no hash), by
numbers for the distinct sequences of 1, 2, … `SEED` words of the exam, as in prefix doubling (Manber and Myers 1993).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.question_key import folded_question_text

#: Fewest words of a run that is looked for, or those of an n-gram if they are fewer.
SEED = 5
WORD = re.compile(r"[^\W_]+")


class WordRuns(NamedTuple):
    """Runs of words, arrays of shape (runs,).

    Attributes:
        questions: number of the question.
        starts: number of the run's first word in the question's words.
        lengths: number of words.
        texts: number of the other text.
    """

    questions: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    texts: np.ndarray


def split_words(text: str) -> list[str]:
    """Return the words and numbers of a text: without case, punctuation and differences of form (NFKC)."""
    return WORD.findall(folded_question_text(text))


def question_words(question: dict) -> tuple[list[str], int]:
    """Return the words of a prompt and then of the right option if it is known, and the number of the former."""
    prompt = split_words(question["prompt"])
    right = answer_options_of(question)[question["answer"]] if question["answer"] else ""
    return prompt + split_words(right), len(prompt)


def question_word_texts(question: dict) -> list[str]:
    """Return the texts of a question that an exam is compared with: its prompt followed by each of its options."""
    return [f"{question['prompt']} {option}" for option in answer_options_of(question).values()]


class ExamWords:
    """The words of each of an exam's questions, in which runs of at least `seed` words of other texts are found."""

    def __init__(self, questions: Sequence[Sequence[str]], seed: int) -> None:
        known = dict.fromkeys(word for words in questions for word in words)
        self.numbers = {word: number for number, word in enumerate(known, 1)}  # 0 is any other word
        self.seed = seed
        ids, self.starts = self._joined(questions)
        self.levels: list[np.ndarray] = []
        ranks = ids
        for size in range(2, seed + 1):
            packed = self._packed(ranks, ids, size)
            self.levels.append(np.unique(packed[packed > 0]))
            ranks = _ranked(packed, self.levels[-1])
        self.order = np.argsort(ranks, kind="stable")
        self.sorted = ranks[self.order]

    def runs(self, texts: Iterable[Sequence[str]]) -> WordRuns:
        """Return the runs of at least `seed` words in other texts, of which the words are given.

        Of the runs that begin at the same word of a question, only the longest one is returned, and of equally long
        ones that of the first text.
        """
        ids, starts = self._joined(texts)
        ranks = ids
        for size, level in enumerate(self.levels, 2):
            ranks = _ranked(self._packed(ranks, ids, size), level)
        hits = np.flatnonzero(ranks)
        first = np.searchsorted(self.sorted, ranks[hits])
        counts = np.searchsorted(self.sorted, ranks[hits], "right") - first
        # A pair for each place in the exam where the words of a hit stand.
        there = np.repeat(hits, counts)
        offsets = np.arange(len(there)) - np.repeat(np.cumsum(counts) - counts, counts)
        here = self.order[np.repeat(first, counts) + offsets]
        diagonal = there - here
        order = np.lexsort((there, diagonal))
        there, here, diagonal = there[order], here[order], diagonal[order]
        begins = np.flatnonzero(
            np.concatenate([[True], (np.diff(diagonal) != 0) | (np.diff(there) != 1)])[: len(there)]
        )
        lengths = np.diff(np.append(begins, len(there))) + self.seed - 1
        here, owner = here[begins], np.searchsorted(starts, there[begins], "right") - 1
        order = np.lexsort((owner, -lengths, here))
        best = order[np.flatnonzero(np.diff(here[order], prepend=-1))]
        questions = np.searchsorted(self.starts, here[best], "right") - 1
        return WordRuns(questions, here[best] - self.starts[questions], lengths[best], owner[best])

    def _joined(self, texts: Iterable[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of all words, with a 0 after each text, and the place of each text's first word."""
        parts = [np.array([*(self.numbers.get(word, 0) for word in words), 0], np.int64) for words in texts]
        lengths = np.array([len(part) for part in parts], np.int64)
        return np.concatenate([np.zeros(0, np.int64), *parts]), np.cumsum(lengths) - lengths

    def _packed(self, ranks: np.ndarray, ids: np.ndarray, size: int) -> np.ndarray:
        """Return a number for the `size` words from each place on, 0 where there are none in the exam.

        Args:
            ranks: numbers for the `size` - 1 words from each place on.
            ids: numbers of the words.
            size: number of words.
        """
        last = np.append(ids[size - 1 :], np.zeros(min(size - 1, len(ids)), np.int64))
        return np.where((ranks > 0) & (last > 0), ranks * (len(self.numbers) + 1) + last, 0)


def _ranked(packed: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the place, from 1, of each number among the known ones, and 0 for all others."""
    if not len(known):
        return np.zeros(len(packed), np.int64)
    at = np.minimum(np.searchsorted(known, packed), len(known) - 1)
    return np.where(known[at] == packed, at + 1, 0)


def share_of_words_found(runs: Iterable[tuple[int, int]], words: int, ngram: int, seed: int) -> float | None:
    """Return the share of a question's n-grams that stand in other texts.

    Words fewer than `ngram` are one n-gram as a whole, as in the paper on GPT-3 (Brown et al. 2020, appendix C).

    Args:
        runs: first word and length of each run of the question.
        words: number of words of the question, counted from its first, that are asked for.
        ngram: words of an n-gram.
        seed: fewest words of a run in `runs`; of a question with fewer words nothing is known, which is None.
    """
    size = min(ngram, words)
    if size < seed:
        return None
    reach = np.zeros(words, np.int64)
    for start, length in runs:
        if start < words:
            reach[start] = max(reach[start], start + length)
    first = np.arange(words - size + 1)
    return float((np.maximum.accumulate(reach)[first] >= first + size).mean())
