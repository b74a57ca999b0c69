"""When two questions are the same: by their words, and by the cosine of their vectors."""

import re
import unicodedata
from collections.abc import Hashable

from sciqa.exam.answer_options import answer_options_of

#: Words with decimals, and signs except those of punctuation: -5 is not 5.
SIGN = re.compile(r"[^\W_]+(?:[.,]\d+)*|[^\w\s.,;:!?\"'“”‘’…()\[\]]")
#: Cosine of the vectors of two questions (prompt with options) from which on they are near copies of each other.
NEAR_COPY = 0.9


def question_key(question: dict) -> tuple:
    """Return what is equal for two questions with the same prompt and options: case, punctuation and order aside."""
    options = sorted(tuple(SIGN.findall(folded_question_text(text))) for text in answer_options_of(question).values())
    return tuple(SIGN.findall(folded_question_text(question["prompt"]))), tuple(options)


def question_keys_with_context(key: Hashable, context: str | None) -> tuple[list[tuple], list[tuple]]:
    """Return the keys that a question is held by, and those that it is looked up by, so that its context counts.

    Two questions of the same key share one of them unless each has a context, and these differ by more than case and
    white space.

    Args:
        key: what says that two questions are the same, but for their contexts.
        context: the question's own context, if it has one.
    """
    own = " ".join(folded_question_text(context or "").split())
    return [(key, own), (key, None)], [(key, own), (key, "")] if own else [(key, None)]


def folded_question_text(text: str) -> str:
    """Return a text without differences of case and, of characters beyond ASCII, of form (NFKC)."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
