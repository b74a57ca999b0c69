"""Requests to the server: their fields and types. Rules that `sciqa ask` has too are checked by `AskOptions`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class RequestSchema(BaseModel):
    """A request's body; fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RankRequest(RequestSchema):
    """`POST /v1/rank`.

    Attributes:
        question: the question.
        options: 2 to 26 different options.
        evidence: whether to look for the sentence of the context that decides on each option.
    """

    question: Text
    options: list[Text] = Field(min_length=2, max_length=26)
    evidence: bool = True


class AskRequest(RequestSchema):
    """`POST /v1/ask`.

    Attributes:
        question: the question.
        stream: send the answer piece by piece.
        max_new_tokens: most tokens of the answer, at most as many as the server allows.
        temperature: sampling temperature; 0 takes the likeliest tokens. By default as the server was started.
        top_p: sample from the likeliest tokens with at least this total probability.
        seed: random seed of sampling.
    """

    question: Text
    stream: bool = False
    max_new_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 32)


class MessagePartSchema(RequestSchema):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class MessageSchema(RequestSchema):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[MessagePartSchema]
    name: None = None

    @property
    def text(self) -> str:
        """The message's text, of all parts."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return "\n".join(parts).strip()


class StreamOptionsSchema(RequestSchema):
    """Options of a stream: whether a last piece counts the tokens."""

    include_usage: bool = False


class ChatRequest(RequestSchema):
    """`POST /v1/chat/completions`: the fields of OpenAI's interface that are honoured, and those that change nothing.

    Of the latter, only values that ask for nothing are taken; `user`, a name for the client's own use, asks for
    nothing. The last message is the question.
    """

    messages: list[MessageSchema] = Field(min_length=1)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptionsSchema | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 32)
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    stop: None = None
    user: str | None = None
    store: Literal[False] | None = None
    metadata: None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("one of max_tokens and max_completion_tokens expected")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: only with stream")
        return self
