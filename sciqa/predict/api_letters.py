"""Letters of options that a server is asked for, and those in its likeliest first tokens."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sciqa.models.prompt_format import Completion, PromptFormat
from sciqa.models.prompt_template import render_prompt

#: What the prompt of a chat ends with.
CHAT_END = "\nAnswer with the letter of the right option alone."
#: A token that is one letter, with the marks that tokenizers (▁, Ġ) and models put around it: " A", "A.", "(A".
TOKEN = re.compile(r"[\s▁Ġ(\[\"'*]*([A-Z])[)\].:,\"'*]*\s*")


def api_letter_prompt(
    question: dict,
    context: str,
    chat: bool,
    template: dict | None = None,
    completion: Completion = "letter",
) -> str | list[dict[str, str]]:
    """Return the prompt that asks for the letter of the right option of a question.

    Args:
        question: row of the exam table.
        context: text to read with it, which may be empty.
        chat: whether it is the message of a chat, or with a template the messages; else a text that the letter
            completes.
        template: as `template_style` returns it; None or empty is the built-in prompt.
        completion: `letter` asks for the letter alone, `reasoned` for reasons before it.
    """
    style = replace(PromptFormat(prompt="chat" if chat else "plain", completion=completion), **(template or {}))
    prompt = render_prompt(question, context, style)
    if not chat:
        return prompt.plain
    return prompt.messages() if template else prompt.user + (CHAT_END if completion == "letter" else "")


def api_token_letter(token: str) -> str | None:
    """Return the letter that a token stands for, or None; lower case is none, since "a" is a word too."""
    found = TOKEN.fullmatch(token)
    return found[1] if found else None


def api_letter_scores(listed: Mapping[str, float], letters: Sequence[str]) -> tuple[np.ndarray, str | None]:
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
        if (letter := api_token_letter(token)) in sums:
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
