"""Scores of free answers against references: ROUGE, token F1, exact match, words, and paired intervals of means."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sciqa.exam.metrics import metric_bootstrap_interval

#: Figures of an answer, and what they are called when printed.
FIGURES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "token_f1": "token F1",
    "exact_match": "exact match",
    "similarity": "embedding similarity",
    "words": "words",
}
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
#: Punctuation; the group is what belongs to a number: its sign, its point, and what stands between two digits.
PUNCTUATION = re.compile(
    r"((?<=\d)[./:^](?=[-.]?\d)|[<>](?=\s?[-.]?\d)|(?:(?<!\w)|(?<=\de))-(?=\.?\d)|(?<!\w)\.(?=\d))"
    rf"|[{re.escape(string.punctuation)}]"
)


def normalised_tokens(text: str) -> list[str]:
    """Return the words of a text nearly as SQuAD's evaluation compares them: no case, punctuation and articles.

    The rules are those of the official script of Rajpurkar et al. 2016 (SQuAD), but that numbers keep their signs and
    points: 3.5 is not 35, and -5 not 5.
    """
    plain = PUNCTUATION.sub(lambda found: found[1] or "", text.lower().replace("\N{MINUS SIGN}", "-"))
    return ARTICLES.sub(" ", plain).split()


def _compared_tokens(answer: str, reference: str) -> tuple[list[str], list[str]]:
    """Return the words of an answer and of a reference; of two texts without words, such as `A` and `<`, the texts."""
    given, expected = normalised_tokens(answer), normalised_tokens(reference)
    if given or expected:
        return given, expected
    whole = [text.strip().casefold() for text in (answer, reference)]
    given, expected = ([text.strip(string.punctuation) or text] for text in whole)
    return given, expected


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of an answer's words, as a bag, against those of a reference (Rajpurkar et al. 2016).

    Texts without any words are compared as a whole.
    """
    given, expected = _compared_tokens(answer, reference)
    common = (Counter(given) & Counter(expected)).total()
    return 2 * common / (len(given) + len(expected))


def rouge_scores(answers: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """Return the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of each answer, words stemmed.

    They are those of the package `rouge_score`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scored = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return [{name: float(score.fmeasure) for name, score in each.items()} for each in scored]


def text_scores(answer: str, reference: str) -> dict[str, float]:
    """Return the figures of an answer that its words give, without those of ROUGE."""
    given, expected = _compared_tokens(answer, reference)
    return {
        "token_f1": token_f1(answer, reference),
        "exact_match": float(given == expected),
        "words": float(len(answer.split())),
    }


def text_metric_rows(answers: dict[str, list[dict]]) -> list[dict]:
    """Return the mean of each figure for each model, with 95 % bootstrap intervals, and the gain over the first model.

    Args:
        answers: rows with all `FIGURES` by the name of the model; those of all models are about the same instructions,
            in the same order.

    Returns:
        Rows with `model`, `figure`, `mean`, `low`, `high`, and for all models but the first `gain`, `gain_low` and
        `gain_high`, whose interval is paired: it is that of the differences on the same instructions.
    """
    rows, first = [], next(iter(answers))
    for figure in FIGURES:
        values = {model: np.array([row[figure] for row in each]) for model, each in answers.items()}
        for model, each in values.items():
            low, high = metric_bootstrap_interval(each)
            row = {"model": model, "figure": figure, "answers": len(each), "mean": float(each.mean())}
            row |= {"low": low, "high": high, "gain": None, "gain_low": None, "gain_high": None}
            if model != first:
                gains = each - values[first]
                gain_low, gain_high = metric_bootstrap_interval(gains)
                row |= {"gain": float(gains.mean()), "gain_low": gain_low, "gain_high": gain_high}
            rows.append(row)
    return rows
