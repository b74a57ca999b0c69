"""Letters of options in what a server answers: in the likeliest first tokens, and in answers in words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sciqa.models.prompt_format import Format
from sciqa.models.prompt_template import render_prompt

#: What the prompt of a chat ends with.
CHAT_END = "\nAnswer with the letter of the right option alone."
#: A token that is one letter, with the marks that tokenizers (▁, Ġ) and models put around it: " A", "A.", "(A".
TOKEN = re.compile(r"[\s▁Ġ(\[\"'*]*([A-Z])[)\].:,\"'*]*\s*")
#: Thoughts before an answer, as models write them out.
THOUGHTS = re.compile(r".*</think>", re.DOTALL)
#: An answer that is a letter, or begins with one that its option's text follows: "B", "(B)", "B. helium".
ALONE = re.compile(r"[(\[]?([A-Z])[)\].:]*(?:\s+(.*))?", re.DOTALL)
#: A letter after the word "answer": "The answer is B.", "Answer: (B)".
NAMED = re.compile(r"answer(?:\s+is)?\s*:?\s*(?:option\s+|letter\s+)?[*(\[]*([A-Z])(?=[*)\].:,;]|\s*$)", re.MULTILINE)


def letter_prompt(question: dict, context: str, chat: bool, template: dict | None = None) -> str | list[dict[str, str]]:
    """Return the prompt that asks for the letter of the right option of a question.

    Args:
        question: row of the exam table.
        context: text to read with it, which may be empty.
        chat: whether it is the message of a chat, or with a template the messages; else a text that the letter
            completes.
        template: as `template_style` returns it; None or empty is the built-in prompt.
    """
    style = replace(Format(prompt="chat" if chat else "plain", completion="letter"), **(template or {}))
    prompt = render_prompt(question, context, style)
    if not chat:
        return prompt.plain
    return prompt.messages() if template else prompt.user + CHAT_END


def token_letter(token: str) -> str | None:
    """Return the letter that a token stands for, or None; lower case is none, since "a" is a word too."""
    found = TOKEN.fullmatch(token)
    return found[1] if found else None


def scores_by_tokens(listed: Mapping[str, float], letters: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """Return the score of each letter, shape (letters,), and the likeliest listed letter, or None if none is listed.

    A letter's score is the logarithm of the sum of the probabilities of its tokens ("A", " A", "A."). A letter that is
    not listed gets an equal share of the probability that the listed tokens leave, and no more than the least likely of
    them has. Without any letter all are tied.

    Args:
        listed: log-probabilities of the likeliest first tokens of an answer.
        letters: letters of the options.
    """
    sums = dict.fromkeys(letters, -np.inf)
    for token, logprob in listed.items():
        if (letter := token_letter(token)) in sums:
            sums[letter] = np.logaddexp(sums[letter], logprob)
    scores = np.array(list(sums.values()))
    if not np.isfinite(scores).any():
        return np.zeros(len(scores)), None
    likeliest = letters[int(scores.argmax())]
    missing = ~np.isfinite(scores)
    if missing.any():
        given = np.array([logprob for logprob in listed.values() if np.isfinite(logprob)])
        left = max(1 - np.exp(given).sum(), np.finfo(float).eps)
        scores[missing] = min(np.log(left / missing.sum()), given.min())
    return scores, likeliest


def scores_by_votes(votes: Sequence[str | None], letters: Sequence[str]) -> np.ndarray:
    """Return the score of each letter, shape (letters,): the logarithm of its share of the votes.

    One vote more, shared by all letters, keeps a letter without votes above probability 0 (additive smoothing).

    Args:
        votes: the letters of the drawn answers; None for an answer without one, which counts for none.
        letters: letters of the options.
    """
    counts = np.array([sum(vote == letter for vote in votes) for letter in letters], float)
    return np.log((counts + 1 / len(letters)) / (counts.sum() + 1))


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer in words gives, or None unless it is plainly one.

    The answer is a letter alone, a letter and its option's text, that text alone, or names letters after the word
    "answer", all the same. Thoughts up to `</think>` are left out.

    Args:
        answer: text of the answer.
        options: texts of the options by letter.
    """
    if "<think>" in (answer := THOUGHTS.sub("", answer)):  # cut off before the answer
        return None
    said = answer.strip().strip("*_`\"' \n")
    texts = {letter: _plain(text) for letter, text in options.items()}
    found = ALONE.fullmatch(said)
    if found and found[1] in texts and (not found[2] or _plain(found[2]).startswith(texts[found[1]])):
        return found[1]
    if named := set(NAMED.findall(re.sub(r"(?i)answer", "answer", said))):
        return named.pop() if len(named) == 1 and named <= texts.keys() else None
    same = [letter for letter, text in texts.items() if text == _plain(said)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    """Return a text as texts are compared: words in lower case, without marks at the end."""
    return " ".join(text.casefold().split()).strip(".*_` ")
