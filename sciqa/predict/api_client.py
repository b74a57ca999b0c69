"""Client of a server in OpenAI's form: requests, and errors in one line.

The package `openai` sends a request again after a status of 408, 409, 429 or 5xx, a timeout or a lost connection,
waits as `Retry-After` says, else twice as long each time with jitter; if that is more than two minutes, or the server
says `x-should-retry: false`, it gives up at once. Answers that came but lack a part are asked for
again here. The key is read from the environment in each process; it is in no argument, record or message.
"""

import contextlib
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.predict.api_options import ApiServerOptions
from sciqa.predict.api_reply import ApiIncompleteReplyError, ApiReply, read_api_reply

if TYPE_CHECKING:
    from openai import APIError, OpenAI

    from sciqa.predict.options import PredictOptions

#: Times that a request is sent again before a run ends: in a run, and before it begins.
RETRIES, FIRST_RETRIES = 12, 2
#: Seconds before the first and at most before a later repeat of a request whose answer lacked a part.
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
#: Numbers of likeliest tokens that servers are asked for: the most that OpenAI's chats give, and that others do.
LISTED = (20, 5)
#: Least characters of a key that is masked in replies; a shorter one, as local servers take, is in them by chance.
LONG_KEY = 16
#: Statuses by which a server refuses one request as it is, and may take the next.
REFUSES = (400, 413, 422)
#: Question by which a server is tried before a run.
TRIAL = "Question: What is 1 + 1?\nA. 2\nB. 3"
#: Suffix of the version, by which some servers answer to a model's plain name: gpt-4o-2024-08-06, name@main.
VERSION = r"[-@](\d{4}|\d{4}-?\d{2}-?\d{2})|@main|:latest"


@dataclass(frozen=True)
class ApiClientServer:
    """A server and how it is asked; without its key.

    Attributes:
        url: address, up to the version.
        model: name of the model.
        key_name: name of the environment variable with the key.
        has_key: whether that variable was set where the run began.
        chat: whether to ask the endpoint for chats, not that for completions.
        timeout: seconds without a response after which a request is sent again.
        tokens: most tokens of a drawn answer.
        listed: number of likeliest tokens to ask for; 0 to draw answers.
        newer: whether the server takes only the arguments of OpenAI's newer models.
    """

    url: str
    model: str
    key_name: str
    has_key: bool
    chat: bool
    timeout: float
    tokens: int
    listed: int = 0
    newer: bool = False

    @property
    def notes(self) -> list[str]:
        """What the user is told of the server's answers."""
        return [f"{self.model} takes no temperature and no seed: its replies are drawn as it likes"] * self.newer

    def check_temperature(self, temperature: float | None, folder: str) -> None:
        """Raise `InputError` if a temperature is given that the server does not take, unless the table is begun."""
        begun = storage.path_exists(tables.table_records_path(folder, tables.INPUTS))
        if self.newer and temperature is not None and not begun:
            raise InputError(f"--temperature: {self.model} takes none; leave it out")

    def request(self, prompt: str | list[dict[str, str]], seed: int, temperature: float) -> dict[str, Any]:
        """Return the body of a request; that for the likeliest first tokens has neither seed nor temperature.

        The prompt is a text, or for a chat its messages.
        """
        body: dict[str, Any] = {"model": self.model}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body |= {"messages": messages} if self.chat else {"prompt": prompt}
        if self.listed:
            body |= {"logprobs": True, "top_logprobs": self.listed} if self.chat else {"logprobs": self.listed}
            return body | {"max_tokens": 1, "temperature": 0.0}
        if self.newer:
            return body | {"max_completion_tokens": self.tokens}
        return body | {"max_tokens": self.tokens, "temperature": temperature, "seed": seed}


class Client:
    """Connection to a server, for any number of threads.

    Args:
        server: the server.
        retries: times that a request is sent again.
    """

    def __init__(self, server: ApiClientServer, retries: int = RETRIES) -> None:
        self.server, self.retries = server, retries
        self.key = read_client_key(server)

    @cached_property
    def connection(self) -> "OpenAI":
        """The client of the package `openai`."""
        from openai import OpenAI

        url, timeout = self.server.url, self.server.timeout
        return OpenAI(api_key=self.key or "none", base_url=url, timeout=timeout, max_retries=self.retries)

    def ask(self, request: dict[str, Any], what: str) -> ApiReply:
        """Return the answer to a request of `ApiClientServer.request`.

        Args:
            request: body of the request.
            what: what is asked, with which a message about this request begins.

        Raises:
            InputError: the server refuses the request, has another model, or does not answer after all repeats.
        """
        spent, lacks = [0, 0], ""
        for repeat in range(self.retries + 1):
            if repeat:
                time.sleep(random.uniform(0.5, 1) * min(FIRST_WAIT * 2 ** (repeat - 1), LONGEST_WAIT))
            try:
                answered = self._send(request, what)
                usage = getattr(answered, "usage", None)
                for at, name in enumerate(("prompt_tokens", "completion_tokens")):
                    count = getattr(usage, name, None)
                    spent[at] += count if type(count) is int else 0  # some servers send other things
                reply = read_api_reply(answered, self.server.chat, self.server.listed)
            except (ApiIncompleteReplyError, ValueError) as error:  # ValueError: not JSON
                lacks = str(error) if isinstance(error, ApiIncompleteReplyError) else "is not JSON, or only half of it"
                continue
            self._check_model(reply.model)
            text = self._without_key(reply.text) if len(self.key) >= LONG_KEY else reply.text
            return replace(reply, text=text, tokens_in=spent[0], tokens_out=spent[1])
        raise ApiIncompleteReplyError(
            f"{what}: an answer of {self.server.url} {lacks}, {self.retries + 1} times in a row"
        )

    def _send(self, request: dict[str, Any], what: str) -> Any:  # noqa: ANN401 (of either endpoint, or no such object)
        with self.short_errors(what):
            if self.server.chat:
                return self.connection.chat.completions.create(**request)
            return self.connection.completions.create(**request)

    @contextlib.contextmanager
    def short_errors(self, what: str) -> Iterator[None]:
        """Turn errors of the package `openai` into an `InputError` without what that package adds to them."""
        from openai import APIError

        try:
            yield
        except APIError as error:
            raise self._error(error, what) from None

    def _error(self, error: "APIError", what: str) -> InputError:
        url, model, status = self.server.url, self.server.model, getattr(error, "status_code", None)
        if status in (401, 403):
            return InputError(
                f"{url}: the server refuses the key (status {status}); set {self.server.key_name} to a valid one, on "
                f"every node{'' if self.key else ' (it is not set)'}"
            )
        if status == 404:
            return InputError(f"--model {model}: not found at {url} (status 404){self._list_models()}")
        reason, again = self._reason(error, status), "run the same command: what has been answered is kept"
        if status in REFUSES:
            return ApiRefusedError(f"{what}: refused by {url} ({reason})")
        if status is not None and status < 500 and status not in (408, 409, 429):
            return InputError(f"{url}: {reason}; once that is mended, {again}")
        said = f"no answer ({reason}) after up to {self.retries} repeats; when the server answers again, {again}"
        return InputError(f"{url}: {said}")

    def _reason(self, error: "APIError", status: int | None) -> str:
        from openai import APITimeoutError

        if status is not None:
            return f"status {status}: {self._server_message(error)}"
        if isinstance(error, APITimeoutError):
            return f"none within {self.server.timeout:g} s"
        return self._without_key(str(error.__cause__ or error))

    def _server_message(self, error: "APIError") -> str:
        body = error.body
        message = (body.get("message") or body.get("detail")) if isinstance(body, dict) else body
        text = " ".join(self._without_key(str(message or error.message)).split())
        return text if len(text) <= 200 else f"{text[:200]}…"

    def _without_key(self, text: str) -> str:
        """Return a text of the server without the key, which some repeat in their messages."""
        return text.replace(self.key, "***") if self.key else text

    def model_names(self) -> list[str]:
        """Return the names of the server's models; empty if it does not list them."""
        from openai import APIStatusError

        try:
            listed = [model.id for model in self.connection.models.list().data or ()]
        except (APIStatusError, ValueError, AttributeError, TypeError):  # it has no such list, or one of another form
            return []
        return [name for name in listed if isinstance(name, str)]

    def _list_models(self) -> str:
        from openai import APIError

        names = []
        with contextlib.suppress(APIError):
            names = self.model_names()
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"; it has {', '.join(names[:10])}{more}" if names else "; check the address and the name"

    def check_listed(self) -> None:
        """Raise `InputError` if the server lists one model, and not this one: such servers answer to any name."""
        with self.short_errors("the list of models"):
            names = self.model_names()
        if len(names) == 1 and self.server.model not in names:
            raise InputError(f"--model {self.server.model}: not found at {self.server.url}{self._list_models()}")

    def _check_model(self, answered: str) -> None:
        asked = self.server.model
        if not answered or answered == asked or re.fullmatch(rf"{re.escape(asked)}({VERSION})", answered):
            return
        raise InputError(
            f"--model {asked}: {self.server.url} answers by another model, {answered}; pass that name if it is meant"
        )


class ApiRefusedError(InputError):
    """A request that the server refuses as it is, such as one for log-probabilities that it does not give."""


def read_client_key(server: ApiClientServer) -> str:
    """Return the key in this process's environment, empty if there is none.

    Raises:
        InputError: the key was there where the run began, but not in this process; or it is no header's text.
    """
    key = os.environ.get(server.key_name, "").strip()
    if server.has_key and not key:
        raise InputError(
            f"{server.key_name}: set where the command was given, but not in a worker; set it on every node before "
            "Ray is started there"
        )
    if not key.isascii() or not key.isprintable():
        raise InputError(f"{server.key_name}: holds characters that no key has (the value is not shown); set it again")
    return key


def find_client_server(options: "PredictOptions") -> ApiClientServer:
    """Return the server of the options, with the form of request that it takes, found by one to four short requests.

    Raises:
        InputError: the package `openai` is missing; no server answers at that address; it refuses the key; or it does
            not have that model.
    """
    require_extra("openai", "--engine openai")
    tokens = options.tokens_of_answer(options.is_reasoned)
    server = named_api_server(options, options.model, options.prompt != "plain", tokens)
    found = try_client_forms(server, options.logprobs and not options.is_reasoned)
    found.check_temperature(options.temperature, options.folder)
    return found


def named_api_server(options: ApiServerOptions, model: str, chat: bool, tokens: int) -> ApiClientServer:
    """Return the server of the options, untried; see `ApiClientServer`."""
    key = bool(os.environ.get(options.api_key_env, "").strip())
    return ApiClientServer(options.base_url, model, options.api_key_env, key, chat, options.timeout, tokens)


@cache
def try_client_forms(server: ApiClientServer, logprobs: bool) -> ApiClientServer:
    """Return a server with the form of request that it takes, with `logprobs` if possible; see `find_client_server`."""
    Client(server, FIRST_RETRIES).check_listed()
    forms = [replace(server, listed=number) for number in LISTED if logprobs]
    forms += [server] + [replace(server, newer=True)] * server.chat
    refusal, gives_none = "", False
    for form in forms:
        if form.listed and gives_none:
            continue
        try:
            Client(form, FIRST_RETRIES).ask(form.request(TRIAL, 0, 0.0), "a first question")
        except (ApiRefusedError, ApiIncompleteReplyError) as error:
            refusal, gives_none = str(error), isinstance(error, ApiIncompleteReplyError)
        else:
            return form
    raise InputError(refusal)
