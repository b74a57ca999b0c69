"""What every request passes first: it is counted, its token is compared, and its size is limited."""

import asyncio
import hashlib
import hmac
import time

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Paths with a label of their own in the metrics.
PATHS = ("/", "/healthz", "/metrics", "/v1/rank", "/v1/ask", "/v1/chat/completions", "/v1/models")
#: Status of requests whose client has gone before there was an answer, as nginx counts them.
CLIENT_GONE = 499
#: Upper bounds, in seconds, of the histograms' buckets.
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 5, 10, 20, 60)


class MetricsMiddleware:
    """Figures of the server in a registry of its own, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("sciqa_requests", "Requests answered.", ("path", "status"), registry=own)
        self.seconds = Histogram(
            "sciqa_request_seconds", "Seconds to the end of the answer.", ("path",), buckets=BUCKETS, registry=own
        )
        self.first_token = Histogram(
            "sciqa_first_token_seconds", "Seconds to the first words of an answer.", buckets=BUCKETS, registry=own
        )
        self.active = Gauge("sciqa_requests_in_progress", "Requests being answered or waiting.", registry=own)
        self.replicas = Gauge("sciqa_replicas", "Replicas of the models that are ready.", registry=own)


class CountRequestsMiddleware:
    """Middleware that counts requests by path and status, and their seconds."""

    def __init__(self, app: ASGIApp, metrics: MetricsMiddleware) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, status, started = scope["path"] if scope["path"] in PATHS else "other", 0, time.monotonic()

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self.metrics.active.track_inprogress():
                await self.app(scope, receive, note)
        except asyncio.CancelledError:
            status = status or CLIENT_GONE
            raise
        finally:
            self.metrics.requests.labels(path, str(status or 500)).inc()
            if status != CLIENT_GONE:
                self.metrics.seconds.labels(path).observe(time.monotonic() - started)


class TokenMiddleware:
    """Middleware that answers 401 to requests for `/v1/…` and `/metrics` without the token.

    `digest` is the sha256 of the token, in hexadecimal; None asks for no token.
    """

    def __init__(self, app: ASGIApp, digest: str | None) -> None:
        self.app, self.digest = app, digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        guarded = scope["type"] == "http" and (scope["path"].startswith("/v1/") or scope["path"] == "/metrics")
        if self.digest and guarded and not self._is_known(scope):
            said = "the header `Authorization: Bearer TOKEN` with this server's token expected"
            headers = {"WWW-Authenticate": "Bearer"}
            await middleware_error(401, said, "authentication_error", headers)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        digest = hashlib.sha256(token.strip()).hexdigest()
        return kind.lower() == b"bearer" and hmac.compare_digest(digest, self.digest or "")


class SizeLimitMiddleware:
    """Middleware that answers 413 to a request whose body is larger than `most` bytes, announced or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        said, size = f"a body of at most {self.most:,} bytes expected", 0
        if int(announced) > self.most:
            await middleware_error(413, said, "invalid_request_error")(scope, receive, send)
            return

        async def measure() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise HTTPException(413, said)
            return message

        await self.app(scope, measure, send)


def middleware_error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error in the form that OpenAI's interface has."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)
