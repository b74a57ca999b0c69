"""OpenAI's form of a conversation: messages in, a completion or its chunks out."""

import json
import time
import uuid
from collections.abc import AsyncIterator

from sciqa.core.errors import InputError
from sciqa.serve.schemas import MessageSchema

#: What an answer tells of itself beside OpenAI's fields.
ABOUT = ("cited", "context_cut", "question_cut")


def split_chat_messages(messages: list[MessageSchema]) -> tuple[list[dict], str]:
    """Return the messages before the last one, for the chat template of the model, and the question: the last one.

    Raises:
        InputError: the last message is not a user's, or has no text.
    """
    *earlier, last = messages
    if last.role != "user" or not last.text:
        raise InputError("messages: a last message of the role `user`, with the question as its text, expected")
    roles = {"developer": "system"}
    return [{"role": roles.get(each.role, each.role), "content": each.text} for each in earlier], last.text


def chat_completion(model: str, whole: dict) -> dict:
    """Return a whole answer, of `gather_app_events`, as a chat completion with what of it is not OpenAI's besides."""
    message = {"role": "assistant", "content": whole["answer"]}
    choice = {"index": 0, "message": message, "finish_reason": whole["finish_reason"], "logprobs": None}
    about = _about(model, "chat.completion") | {"choices": [choice], "usage": _usage(whole)}
    return about | {name: whole[name] for name in ("passages", *ABOUT)}


async def chat_chunks(model: str, events: AsyncIterator[dict], usage: bool) -> AsyncIterator[str]:
    """Yield an answer as server-sent chunks of a chat completion, as it is written.

    The first chunk has the `passages`, the last one the fields of `ABOUT`, beside OpenAI's. The events are those of
    `sciqa.serve.replica.Replica.write`; with `usage`, one more chunk counts the tokens.
    """
    about = _about(model, "chat.completion.chunk")

    def chunk(delta: dict, reason: str | None = None, **more: object) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event(about | {"choices": [choice]} | more)

    async for event in events:
        if event["type"] == "passages":
            yield chunk({"role": "assistant", "content": ""}, passages=event["passages"])
        elif event["type"] == "text":
            yield chunk({"content": event["text"]})
        elif event["type"] == "done":
            yield chunk({}, event["finish_reason"], **{name: event[name] for name in ABOUT})
            if usage:
                yield _event(about | {"choices": [], "usage": _usage(event)})
        else:
            yield _event({"error": {"message": event["message"], "type": "server_error", "param": None, "code": None}})
    yield "data: [DONE]\n\n"


def _about(model: str, kind: str) -> dict:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(made: dict) -> dict:
    prompt, written = made["prompt_tokens"], made["tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"
