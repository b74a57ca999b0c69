"""Replies of a server in OpenAI's form, each kept as it comes, so that a run that goes on asks nothing twice."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, NamedTuple

from sciqa.core.errors import InputError
from sciqa.core.extras import require
from sciqa.generate.options import GenerateOptions
from sciqa.generate.parse import reply_schema
from sciqa.models.prompt_template import Prompt
from sciqa.predict.api_client import (
    FIRST_RETRIES,
    TRIAL,
    ApiIncompleteReplyError,
    ApiRefusedError,
    Client,
    FoundServer,
    named_server,
    try_client_forms,
)
from sciqa.predict.api_records import RequestRecords, request_key

#: Most tokens of the trial replies.
TRIAL_TOKENS = 16


class ModelReply(NamedTuple):
    """What a model replied.

    Attributes:
        text: the reply.
        fault: one of `sciqa.generate.parse.REPLY_FAULTS` if there is no reply, else None.
        tokens_in: tokens that the model read.
        tokens_out: tokens that it wrote.
    """

    text: str
    fault: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


class ServerWriter:
    """Writer that asks a server; it may be called in several threads, which share the limit of requests.

    Args:
        server: the server.
        extra: fields of every request beside those of `FoundServer.request`, such as the form of its reply.
        concurrency: requests that are under way at the same time.
        options: seed and temperature.
    """

    def __init__(self, server: FoundServer, extra: dict[str, Any], concurrency: int, options: GenerateOptions) -> None:
        self.client, self.extra, self.seed = Client(server), extra, options.seed
        self.temperature = (options.temperature or 1.0) if options.draws else 0.0
        self.pool = ThreadPoolExecutor(concurrency)
        self.notes: list[str] = []

    def write(self, prompts: list[Prompt], names: list[str], folder: str) -> list[ModelReply]:
        """Return a reply to each prompt, asked now or before.

        Args:
            prompts: the prompts.
            names: ids of the replies, `PASSAGE-NUMBER`.
            folder: folder in whose records the replies are kept until they are in a table.

        Raises:
            InputError: the server does not answer as a server in this form does; requests under way are kept.
        """
        records = RequestRecords(folder)
        pairs = zip(prompts, names, strict=True)
        asked = [self.pool.submit(self._reply, prompt, name, records) for prompt, name in pairs]
        try:
            return [future.result() for future in asked]
        except ApiIncompleteReplyError as error:
            raise InputError(str(error)) from error
        finally:  # after an error
            for future in asked:
                future.cancel()
            wait(asked)

    def _reply(self, prompt: Prompt, name: str, records: RequestRecords) -> ModelReply:
        number = int(name.rpartition("-")[2])
        request = self.client.server.request(prompt.messages(), self.seed + number, self.temperature) | self.extra
        key = request_key(name, 0, number, request)
        if (kept := records.get(key)) is None:
            try:
                reply = self.client.ask(request, f"passage {name.rpartition('-')[0]}")
                kept = {"text": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
            except ApiRefusedError:
                kept = {"text": "", "fault": "refused"}
            records.put(key, kept)
        return ModelReply(**{field: kept[field] for field in ModelReply._fields if field in kept})


def find_json_server(options: GenerateOptions) -> tuple[FoundServer, dict[str, Any]]:
    """Return the server of the options, and the fields by which it constrains replies to the schema, if it can.

    It is tried with a few requests of a few tokens.

    Raises:
        InputError: as in `sciqa.predict.api_client.find_client_server`.
    """
    require("openai", "--engine openai")
    server = try_client_forms(named_server(options, options.model, chat=True, tokens=TRIAL_TOKENS), False)
    schema = {"name": options.kind, "strict": True, "schema": reply_schema(options.kind, options.choices)}
    extra = {"response_format": {"type": "json_schema", "json_schema": schema}}
    try:
        Client(server, FIRST_RETRIES).ask(server.request(TRIAL, 0, 0.0) | extra, "a first question")
    except (ApiRefusedError, ApiIncompleteReplyError):
        extra = {}
    return replace(server, tokens=options.reply_tokens), extra
