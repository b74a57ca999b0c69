"""Replies of a server in OpenAI's form, each kept as it comes, so that a run that goes on asks nothing twice."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.generate.options import GenerateOptions
from sciqa.generate.replies import SchemaForm, reply_schema
from sciqa.models.prompt_template import TemplatePrompt
from sciqa.predict.api_client import (
    FIRST_RETRIES,
    TRIAL,
    ApiClientServer,
    ApiRefusedError,
    Client,
    named_api_server,
    try_client_forms,
)
from sciqa.predict.api_records import RequestRecords, record_key
from sciqa.predict.api_reply import ApiIncompleteReplyError

#: Most tokens of the trial replies.
TRIAL_TOKENS = 16
#: Forms of schemas that servers are tried with, the strictest first.
SERVER_FORMS: tuple[SchemaForm, ...] = ("sentences", "fields")
#: Passage of the trial, with what a server may refuse in a schema.
TRIAL_PASSAGE = 'It is called "déjà vu". A set is written as {1, 2}.'


class ServerWriterReply(NamedTuple):
    """What a model replied.

    Attributes:
        text: the reply.
        fault: one of `sciqa.generate.replies.REPLY_FAULTS` if there is no reply, else None.
        tokens_in: tokens that the model read.
        tokens_out: tokens that it wrote.
    """

    text: str
    fault: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


class ServerWriter:
    """Writer that asks a server; it may be called in several threads, which share the limit of requests."""

    def __init__(self, server: ApiClientServer, concurrency: int, options: GenerateOptions) -> None:
        self.client, self.seed = Client(server), options.seed
        self.temperature = (options.temperature or 1.0) if options.draws else 0.0
        self.pool = ThreadPoolExecutor(concurrency)
        self.notes = server.notes

    def write(
        self, prompts: list[TemplatePrompt], names: list[str], folder: str, schemas: Sequence[dict | None]
    ) -> list[ServerWriterReply]:
        """Return a reply to each prompt, asked now or before.

        Args:
            prompts: the prompts.
            names: ids of the replies, `PASSAGE-NUMBER`.
            folder: folder in whose records the replies are kept until they are in a table.
            schemas: JSON schema of each reply, or None, with which the model may write anything.

        Raises:
            InputError: the server does not answer as a server in this form does, or refuses whatever it is asked, as
                some do without credit; requests under way are kept.
        """
        records = RequestRecords(folder)
        each = zip(prompts, names, schemas, strict=True)
        asked = [self.pool.submit(self._reply, *one, records) for one in each]
        try:
            return [future.result() for future in asked]
        except ApiIncompleteReplyError as error:
            raise InputError(str(error)) from error
        finally:  # after an error
            for future in asked:
                future.cancel()
            wait(asked)

    def _reply(
        self, prompt: TemplatePrompt, name: str, schema: dict | None, records: RequestRecords
    ) -> ServerWriterReply:
        number = int(name.rpartition("-")[2])
        request = self.client.server.request(prompt.messages(), self.seed + number, self.temperature)
        request |= server_schema_fields(schema)
        key = record_key(name, 0, number, request)
        if (kept := records.get(key)) is None:
            try:
                reply = self.client.ask(request, f"passage {name.rpartition('-')[0]}")
            except ApiRefusedError:  # not kept: it costs nothing to ask again
                self._check_takes_trial()
                return ServerWriterReply("", "refused")
            kept = {"text": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
            records.put(key, kept)
        return ServerWriterReply(**{field: kept[field] for field in ServerWriterReply._fields if field in kept})

    def _check_takes_trial(self) -> None:
        """Raise `InputError` if the server now refuses also what it has answered before the run."""
        request = replace(self.client.server, tokens=TRIAL_TOKENS).request(TRIAL, 0, 0.0)
        try:
            with suppress(ApiIncompleteReplyError):
                self.client.ask(request, "a short question, which it has answered before")
        except ApiRefusedError as error:
            again = "once it takes that again, as with new credit, run the same command: what has been answered is kept"
            raise InputError(f"{error}; {again}") from error


def server_schema_fields(schema: dict | None) -> dict[str, Any]:
    """Return the fields of a request by which a server limits its reply to a schema."""
    if schema is None:
        return {}
    named = {"name": "reply", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def find_writer_server(options: GenerateOptions) -> tuple[ApiClientServer, SchemaForm]:
    """Return the server of the options, and what it takes of the schema of a reply.

    It is tried with a few requests of a few tokens.

    Raises:
        InputError: as in `sciqa.predict.api_client.find_client_server`.
    """
    require_extra("openai", "--engine openai")
    server = try_client_forms(named_api_server(options, options.model, chat=True, tokens=TRIAL_TOKENS), False)
    server.check_temperature(options.temperature, options.folder)
    client, found = Client(server, FIRST_RETRIES), replace(server, tokens=options.reply_tokens)
    for form in SERVER_FORMS:
        schema = reply_schema(options.kind, options.choices, form, TRIAL_PASSAGE)
        with suppress(ApiRefusedError, ApiIncompleteReplyError):
            client.ask(server.request(TRIAL, 0, 0.0) | server_schema_fields(schema), "a first question")
            return found, form
    return found, "free"
