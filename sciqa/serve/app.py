"""The web application: its routes, and what they answer."""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from sciqa import __version__
from sciqa.ask.answerer import answerer_name
from sciqa.core.errors import InputError
from sciqa.serve import chat
from sciqa.serve.middleware import (
    CountRequestsMiddleware,
    MetricsMiddleware,
    SizeLimitMiddleware,
    TokenMiddleware,
    middleware_error,
)
from sciqa.serve.options import ServeOptions
from sciqa.serve.schemas import AskRequest, ChatRequest, RankRequest
from sciqa.serve.served_models import BusyServedModelsError, LostServedModelsError, ModelsInterface

PAGE = Path(__file__).parent / "page.html"
#: Headers of the page: it loads nothing, asks its own server alone, and stands in no frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
NOT_STORED = {"Cache-Control": "no-store"}
JSON_LINES, EVENTS = "application/x-ndjson", "text/event-stream"
#: What a client is told whose request is refused because of load, or lost with its replica.
BUSY = "as many requests wait as may wait; try again"
LOST = "the replica of the models that worked on this request has ended; send it again"
FAILED = "the request failed; the log of the server says why"


def create_app(models: ModelsInterface, options: ServeOptions, digest: str | None) -> FastAPI:
    """Return the web application.

    `digest` is the sha256 of the token that requests must bring, in hexadecimal; None asks for none.
    """
    # The pages of documentation that FastAPI makes would load scripts from elsewhere.
    app = FastAPI(title="sciqa", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = StrictJsonRoute
    metrics = MetricsMiddleware()
    routes = AppRoutes(models, options, metrics, digest is not None)
    app.add_api_route("/", routes.page, methods=["GET"], response_class=HTMLResponse)
    app.add_api_route("/healthz", routes.health, methods=["GET"])
    app.add_api_route("/metrics", routes.figures, methods=["GET"])
    app.add_api_route("/v1/models", routes.list_models, methods=["GET"])
    app.add_api_route("/v1/rank", routes.rank, methods=["POST"])
    app.add_api_route("/v1/ask", routes.ask, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", routes.complete_chat, methods=["POST"], response_model=None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(InputError, _bad_input)
    app.add_exception_handler(BusyServedModelsError, lambda request, error: _unavailable(BUSY))
    app.add_exception_handler(LostServedModelsError, lambda request, error: _unavailable(LOST))
    app.add_exception_handler(Exception, lambda request, error: middleware_error(500, FAILED, "server_error"))
    app.add_middleware(SizeLimitMiddleware, most=options.max_request_bytes)
    app.add_middleware(TokenMiddleware, digest=digest)
    app.add_middleware(CountRequestsMiddleware, metrics=metrics)  # added last, so it is outermost
    return app


class StrictJsonRequest(Request):
    """A request whose body is refused if an object in it has a field twice, of which Python takes the last."""

    async def json(self) -> object:
        """Return the body as JSON."""
        return json.loads(await self.body(), object_pairs_hook=_fields_once)


class StrictJsonRoute(APIRoute):
    """A route that reads its requests as `StrictJsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return answer


def _fields_once(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise HTTPException(400, f"{name}: given twice in the body")
    return fields


class AppRoutes:
    """The functions behind the paths."""

    def __init__(
        self, models: ModelsInterface, options: ServeOptions, metrics: MetricsMiddleware, token_required: bool
    ) -> None:
        self.models, self.options, self.metrics, self.token_required = models, options, metrics, token_required
        self.model = answerer_name(options)

    async def page(self) -> HTMLResponse:
        """Return the page on which people ask."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    async def health(self) -> JSONResponse:
        """Say whether a replica of the models is ready; status 503 if none is."""
        replicas = await asyncio.to_thread(self.models.replicas)
        about = {"status": "ok" if replicas else "no replica is ready", "replicas": replicas, "model": self.model}
        return JSONResponse(about | {"token_required": self.token_required}, 200 if replicas else 503)

    async def figures(self) -> Response:
        """Return the figures of the server in the text format of Prometheus."""
        self.metrics.replicas.set(await asyncio.to_thread(self.models.replicas))
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def list_models(self) -> dict:
        """Return the models of this server, one, in OpenAI's form."""
        return {"object": "list", "data": [{"id": self.model, "object": "model", "created": 0, "owned_by": "sciqa"}]}

    async def rank(self, request: RankRequest) -> dict:
        """Rank the options of a question."""
        self.options.for_question(request.question, tuple(request.options))  # refused before it waits
        made = await self.models.rank(request.question, request.options, request.evidence)
        raise_app_error(made)
        return {"model": self.model} | {name: value for name, value in made.items() if name != "type"}

    async def ask(self, request: AskRequest, http: Request) -> JSONResponse | StreamingResponse:
        """Answer a question in words: whole, as server-sent events, or as JSON lines where these are accepted."""
        settings = self.options.answer_settings(
            request.max_new_tokens, request.temperature, request.top_p, request.seed
        )
        events = await self._write(request.question, [], settings)
        if not request.stream:
            return JSONResponse({"model": self.model} | await gather_app_events(events))
        lines = JSON_LINES in http.headers.get("accept", "")
        form = "{}\n" if lines else "data: {}\n\n"
        pieces = (form.format(json.dumps(event)) async for event in _until_error(events))
        return StreamingResponse(pieces, media_type=JSON_LINES if lines else EVENTS, headers=NOT_STORED)

    async def complete_chat(self, request: ChatRequest) -> JSONResponse | StreamingResponse:
        """Answer the last message of a conversation, in the form of OpenAI's chat completions."""
        known = (None, self.model) if self.options.adapter else (None, self.model, self.options.model)
        if request.model not in known:
            raise HTTPException(404, f"model: no model {request.model!r} here; there is {self.model!r}")
        earlier, question = chat.split_chat_messages(request.messages)
        most = request.max_completion_tokens or request.max_tokens
        settings = self.options.answer_settings(most, request.temperature, request.top_p, request.seed)
        events = await self._write(question, earlier, settings)
        if not request.stream:
            return JSONResponse(chat.chat_completion(self.model, await gather_app_events(events)))
        usage = bool(request.stream_options and request.stream_options.include_usage)
        pieces = chat.chat_chunks(self.model, _until_error(events), usage)
        return StreamingResponse(pieces, media_type=EVENTS, headers=NOT_STORED)

    async def _write(self, question: str, earlier: list[dict], settings: dict) -> AsyncIterator[dict]:
        """Return the events of an answer once its first words are there, so that what fails before has a status."""
        self.options.for_question(question, **settings)  # refused before it waits
        started, first = time.monotonic(), []
        events = self.models.write(question, earlier, settings)
        async for event in events:
            raise_app_error(event)
            first.append(event)
            if event["type"] != "passages":
                self.metrics.first_token.observe(time.monotonic() - started)
                break
        return _joined(first, events)


async def _joined(first: list[dict], rest: AsyncIterator[dict]) -> AsyncIterator[dict]:
    async with contextlib.aclosing(rest):  # type: ignore[type-var]  # an asynchronous generator
        for event in first:
            yield event
        async for event in rest:
            yield event


async def _until_error(events: AsyncIterator[dict]) -> AsyncIterator[dict]:
    """Yield events; where they end by an error, it is the last one, of the type `error`."""
    try:
        async for event in events:
            yield event | {"type": "error"} if event["type"] == "failure" else event
    except (BusyServedModelsError, LostServedModelsError) as error:
        yield {"type": "error", "message": BUSY if isinstance(error, BusyServedModelsError) else LOST}


async def gather_app_events(events: AsyncIterator[dict]) -> dict:
    """Return all events of an answer as one: its `answer`, the `passages` and what the last event says."""
    made: dict = {"answer": ""}
    async for event in events:
        raise_app_error(event)
        if event["type"] == "text":
            made["answer"] += event["text"]
        else:
            made |= {name: value for name, value in event.items() if name != "type"}
    return made


def raise_app_error(event: dict) -> None:
    """Raise the error that an event of the models tells of, if it tells of one."""
    if event["type"] == "error":
        raise InputError(event["message"])
    if event["type"] == "failure":
        raise HTTPException(500, event["message"])


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not JSON (400, 415) or has other fields than expected (422); the body is not repeated."""
    assert isinstance(error, RequestValidationError)
    details = error.errors()
    if any(each["loc"] == ("body",) for each in details) and "json" not in request.headers.get("content-type", ""):
        said = "Content-Type: application/json expected, as a header of the request"
        return middleware_error(415, said, "invalid_request_error")
    if broken := next((each for each in details if each["type"] == "json_invalid"), None):
        said = f"the body is not JSON (character {broken['loc'][-1]}: {broken['ctx']['error']})"
        return middleware_error(400, said, "invalid_request_error")
    places = (f"{_place(each['loc'])}: {each['msg']}" for each in details)
    said = "; ".join(place.removeprefix("body: Value error, ") for place in places)  # rules of several fields
    return middleware_error(422, said, "invalid_request_error")


def _place(location: tuple) -> str:
    """Return the place of a field in a request, such as `messages.0.content`."""
    return ".".join(str(part) for part in location if part != "body") or "body"


def _bad_input(request: Request, error: Exception) -> JSONResponse:
    """Answer what `AskOptions` or the models refuse, with the names of fields in place of those of flags."""
    said = re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), str(error))
    return middleware_error(422, said, "invalid_request_error")


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return middleware_error(error.status_code, str(error.detail), kind, dict(error.headers or {}))


def _unavailable(message: str) -> JSONResponse:
    return middleware_error(503, message, "overloaded_error", {"Retry-After": "1"})
