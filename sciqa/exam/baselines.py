"""Shallow baselines: ways to rank the options of a question without understanding it.

If one of them scores far above or below chance, the exam can be passed without reading, and a reader's score says
little about what it understands (Gururangan et al. 2018 show such artefacts in data sets of natural language
inference).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from sciqa.exam.answer_options import answer_options_of

Baseline = Literal["overlap", "overlap-gold", "longest", "majority"]
WORD = re.compile(r"\w+")
#: Function words, which say nothing about the content of an option.
FUNCTION_WORDS = frozenset(
    WORD.findall(
        "a about after all also an and any are as at be because been before being between both but by can could did do "
        "does during each either for from had has have having he her his how if in into is it its itself may might "
        "more most must no nor not of on one only onto or other our out over own same she should so some such than "
        "that the their them then there these they this those through to too under until up upon very was we were what "
        "when where which while who whom whose why will with within without would you your"
    )
)
#: Baselines that compare an option with a text: that which the reader has, and the gold article.
OVERLAPS: tuple[Baseline, ...] = ("overlap", "overlap-gold")
#: All baselines, by the name of their reader.
BASELINES: tuple[Baseline, ...] = (*OVERLAPS, "longest", "majority")


def baseline_words(text: str) -> set[str]:
    """Return the different words of a text in lower case, numbers included and function words left out."""
    return {word for word in WORD.findall(text.lower()) if word not in FUNCTION_WORDS}


def overlap_baseline_scores(options: Sequence[str], text: str) -> np.ndarray:
    """Return the share of each option's content words that a text contains, from 0 to 1, shape (options,)."""
    held = baseline_words(text)
    words = list(map(baseline_words, options))
    return np.array([len(each & held) / len(each) if each else 0.0 for each in words])


def longest_baseline_scores(options: Sequence[str]) -> np.ndarray:
    """Return the logarithm of each option's number of characters, shape (options,)."""
    return np.log([len(option) for option in options])


def baseline_answer_counts(questions: Sequence[dict]) -> dict[str, int]:
    """Return how often each letter is the right one."""
    return dict(Counter(question["answer"] for question in questions if question["answer"]))


def majority_baseline_scores(letters: Sequence[str], counts: dict[str, int]) -> np.ndarray:
    """Return the logarithm of each letter's share of the right options, with one added to each, shape (options,).

    Args:
        letters: letters of the question's options.
        counts: result of `baseline_answer_counts`. From the exam itself, the baseline is an upper bound of what a guess
            of one letter scores.
    """
    given = np.array([counts.get(letter, 0) + 1.0 for letter in letters])
    return np.log(given / given.sum())


def baseline_scores(name: str, counts: dict[str, int]) -> Callable[[dict, str], np.ndarray]:
    """Return the function of a baseline that takes a question and a text and returns the scores of its options.

    Args:
        name: one of `BASELINES`.
        counts: result of `baseline_answer_counts`, for `majority`.
    """
    return {
        "longest": lambda question, _: longest_baseline_scores(list(answer_options_of(question).values())),
        "majority": lambda question, _: majority_baseline_scores(list(answer_options_of(question)), counts),
    }.get(name, lambda question, text: overlap_baseline_scores(list(answer_options_of(question).values()), text))
