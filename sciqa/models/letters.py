"""Letters of options in answers in words, and votes for them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from sciqa.models.thoughts import end_of_thoughts, thoughts_start_mark

#: Version of `find_letter`. Raise it with every change of its rules, so that older answers are not reused.
LETTERS_FORMAT = 5
#: An answer that is a letter, or begins with one that its option's text follows: "B", "(B)", "B. helium".
ALONE = re.compile(r"[(\[]?([A-Z])([)\].:]*)(?:\s+(.*))?", re.DOTALL)
#: Marks around an answer: those of Markdown, and quotes.
MARKS = "*_`\"' \t\r\n"
#: A letter that a statement names: "The answer is B.", "**Answer:** (B)", "\\boxed{B}"; not the article in "is A gas",
#: nor a letter that is only spoken of, as in "Answer choice A: too light". "Wrong answer" matches without a letter.
STATED = re.compile(
    r"""(?i:\b(?:wrong|incorrect|false|bad|worst|tempting|not\s+(?:the|an?)\s+(?:correct|right|best))[ *_]+
        (?:answer|option|choice|letter)\b)
    |(?i:\b(?:answer(?:\s+(?:option|choice|letter))?(?:\s+to\s+(?:the|this)\s+question)?(?:[\s*_]+is|[ *_]*[:\n])
        |(?:correct|right|best)\s+(?:answer|option|choice|letter)(?:\s+to\s+(?:the|this)\s+question)?(?:[\s*_]+is)?))
        [\s*_:]*(?i:(?:option|letter|choice)\s+)?[*_(\[<`$"']*(?:\\boxed\{)?
        (?P<said>[A-Z])(?:[*_)\]}>`$"'.:;]|,(?!\s*(?:(?:and|or)\s+)?[A-Z]\b)|[^\S\n]*$)
    |\\boxed\{\s*(?:\\\w+\{)?\(?(?P<boxed>[A-Z])\b""",
    re.MULTILINE | re.VERBOSE,
)
#: A line that begins with "Answer:", at the end of a text, with the start of the next line.
ANSWER_LINE = re.compile(r"(?:^|\n)[\s*_#>]*(?i:(?:final\s+)?answer)[\s*_]*:[^\n]*\n\s*$")


def scores_by_letter_votes(
    votes: Sequence[str | None], letters: Sequence[str], likelihood: np.ndarray | None = None
) -> np.ndarray:
    """Return the score of each letter, shape (letters,): the logarithm of its share of the votes.

    Votes for no letter do not count, and all letters share one vote more. They share it evenly, or half of it evenly
    and half by their likelihood, shape (letters,), with the sum 1: letters are then ranked by votes, and those with
    equal votes by likelihood.
    """
    counts = np.array([sum(vote == letter for vote in votes) for letter in letters], float)
    even = np.full(len(letters), 1 / len(letters))
    return np.log((counts + (even if likelihood is None else (even + likelihood) / 2)) / (counts.sum() + 1))


def find_letter(answer: str, options: Mapping[str, str]) -> tuple[str, int] | None:
    r"""Return the letter that an answer in words ends with and its place in the text, or None without one.

    What is read, in this order, of the text after the last thoughts (up to `</think>`); thoughts that do not end are
    no answer:

    1. the whole text, if it is a letter, a letter with its option's text, a letter and a mark with the beginning of
       that (a limit of tokens cuts answers off), or an option's text alone;
    2. the last statement that names a letter: after "answer is", "answer:" or "correct option" ("The answer is B.",
       "**Answer:** (B)"), or in LaTeX's box ("\boxed{B}"); one of a wrong answer is none;
    3. the last line, if it is what 1 says of the whole text.

    Of several statements the last one counts. A letter of no option is no answer, also where an earlier statement
    names an option. Lower case is no letter.
    """
    if thoughts_start_mark(answer):  # cut off before the answer
        return None
    start = end_of_thoughts(answer)
    if found := _find_alone(answer, start, options):
        return found
    if stated := [found for found in STATED.finditer(answer, start) if found.lastgroup]:
        letter = stated[-1][name := str(stated[-1].lastgroup)]
        return (letter, stated[-1].start(name)) if letter in options else None
    last = answer.rstrip().rfind("\n") + 1
    return _find_alone(answer, max(start, last), options)


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer in words ends with, or None; see `find_letter`."""
    found = find_letter(answer, options)
    return found[0] if found else None


def ends_with_letter(text: str) -> bool:
    """Whether a text ends with a whole line "Answer: X", after which a model that goes on only invents questions."""
    found = ANSWER_LINE.search(text)
    stated = found and STATED.search(text, found.start())
    return bool(stated and stated.lastgroup and not thoughts_start_mark(text))


def _find_alone(answer: str, start: int, options: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the letter and the place of an answer that is nothing else, from `start` on."""
    part = answer[start:].strip(MARKS)
    at = answer.find(part, start)
    texts = {letter: _plain(text) for letter, text in options.items()}
    found = ALONE.fullmatch(part)
    if found and found[1] in texts:
        follows, option = _plain(found[3] or ""), texts[found[1]]
        begins = option and follows.startswith(option)  # an option of marks alone begins no text
        if not follows or begins or (found[2] and option.startswith(follows)):
            return found[1], at + found.start(1)
    same = [letter for letter, text in texts.items() if text and text == _plain(part)]
    return (same[0], at) if len(same) == 1 else None


def _plain(text: str) -> str:
    """Return a text as texts are compared: words in lower case, without marks at the end."""
    return " ".join(text.casefold().split()).strip(".*_` ")
