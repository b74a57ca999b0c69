"""When two questions are the same: by their words, and by the cosine of their vectors."""

import re
import unicodedata

from sciqa.exam.answer_options import answer_options_of

#: Words with decimals, and signs except those of punctuation: -5 is not 5.
SIGN = re.compile(r"[^\W_]+(?:[.,]\d+)*|[^\w\s.,;:!?\"'“”‘’…()\[\]]")
#: Cosine of the vectors of two questions (prompt with options) from which on they are near copies of each other.
NEAR_COPY = 0.9


def question_key(question: dict) -> tuple:
    """Return what is equal for two questions with the same prompt and options: case, punctuation and order aside."""
    options = sorted(tuple(SIGN.findall(folded_question_text(text))) for text in answer_options_of(question).values())
    return tuple(SIGN.findall(folded_question_text(question["prompt"]))), tuple(options)


def folded_question_text(text: str) -> str:
    """Return a text without differences of case and, of characters beyond ASCII, of form (NFKC)."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
