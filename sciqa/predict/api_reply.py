"""Replies of a server in OpenAI's form: text, log-probabilities of the first token, and the model that answered."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


class ApiIncompleteReplyError(Exception):
    """An answer that lacks a part, or has one that is no number."""


@dataclass
class ApiReply:
    """An answer of a server.

    Attributes:
        text: its text.
        logprobs: log-probabilities of the likeliest first tokens, by their text, if they were asked for.
        tokens_in: tokens that the server read, also for answers that lacked a part.
        tokens_out: tokens that it wrote.
        finished: whether the model ended it; otherwise it was cut off.
        model: name of the model that answered, empty if the server does not say it.
    """

    text: str
    logprobs: dict[str, float]
    tokens_in: int = 0
    tokens_out: int = 0
    finished: bool = True
    model: str = ""


def read_api_reply(answered: Any, chat: bool, listed: int) -> ApiReply:  # noqa: ANN401 (whatever a server sent)
    """Return the answer in a response, or raise `ApiIncompleteReplyError` if it lacks a part that was asked for.

    Args:
        answered: the response, as the package `openai` returns it.
        chat: whether it is of the endpoint for chats.
        listed: number of likeliest tokens that were asked for; 0 for a drawn answer.
    """
    choices = getattr(answered, "choices", None)
    if not choices or not isinstance(choices, list):
        raise ApiIncompleteReplyError("has no choices")
    first = choices[0]
    if chat:
        message = getattr(first, "message", None)
        text = getattr(message, "content", None)
        refused = getattr(message, "refusal", None) or getattr(first, "finish_reason", None) == "content_filter"
        if not isinstance(text, str) and not (refused or getattr(first, "finish_reason", None) == "length"):
            raise ApiIncompleteReplyError("has no text")
    elif not isinstance(text := getattr(first, "text", None), str):
        raise ApiIncompleteReplyError("has no text")
    finished = bool(listed) or getattr(first, "finish_reason", None) != "length"
    model = _whole_characters(str(getattr(answered, "model", None) or ""))
    tokens = _first_tokens(first, chat) if listed else {}
    return ApiReply(_whole_characters(text or ""), tokens, finished=finished, model=model)


def _whole_characters(text: str) -> str:
    """Return a text with U+FFFD in place of each half of a surrogate pair, as of an emoji that was cut."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first_tokens(choice: Any, chat: bool) -> dict[str, float]:  # noqa: ANN401
    """Return the log-probabilities of the likeliest first tokens, by text; tokens of the same text are summed.

    A chat's list may have a text twice, where a server leaves out the space that one of the tokens begins with; with
    the same log-probability it is one token, listed twice.
    """
    try:
        if chat:
            found = choice.logprobs.content[0].top_logprobs
            listed = list(dict.fromkeys((token.token, token.logprob) for token in found))
        else:
            listed = list(choice.logprobs.top_logprobs[0].items())
    except (AttributeError, IndexError, TypeError):
        listed = []
    if not listed:
        raise ApiIncompleteReplyError("has no log-probabilities")
    sums: dict[str, float] = {}
    for token, logprob in listed:
        if not isinstance(token, str) or not isinstance(logprob, int | float) or not logprob <= 1e-3:  # NaN too
            raise ApiIncompleteReplyError(f"has {logprob!r:.40} as a log-probability")
        if not math.isinf(logprob):
            token = _whole_characters(token)
            sums[token] = float(np.logaddexp(sums[token], logprob)) if token in sums else float(logprob)
    return sums
