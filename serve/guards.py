"""What stands before every route: request metrics, API keys, the limit on a body's size."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import UserError
from orchestrator.serve.backend import Backend
from orchestrator.serve.errors import RequestError

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
"""Probes of an orchestrator carry no key."""
MIN_KEY = 16
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def digest_key(key: str) -> str:
    """The sha256 of an API key: what the server keeps in the key's place."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Digests of the keys in a file: one a line, blank lines and `#` lines skipped.

    Raises:
        UserError: if the file can't be read, has no key, or has one that is easily guessed.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {path} can't be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path} has no key; write one a line")
    if any(len(key) < MIN_KEY for key in keys):
        raise UserError(
            f"--api-key-file {path}: a key has {MIN_KEY} characters at least; "
            "`openssl rand -hex 24` makes one"
        )
    return tuple(digest_key(key) for key in keys)


class KeyGuard:
    """Answers 401 unless a request carries one of the keys.

    The key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
    """

    def __init__(self, app: ASGIApp, digests: Sequence[str]) -> None:
        self._app, self._digests = app, tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request with a key through."""
        if (
            scope["type"] != "http"
            or scope["path"] in OPEN_PATHS
            or self._knows(Headers(scope=scope))
        ):
            await self._app(scope, receive, send)
            return
        response = JSONResponse(
            {"error": "send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = digest_key(key)
        # Every key is compared, each in constant time, so that time tells nothing.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


class BodyLimit:
    """Refuses bodies above a size, announced or streamed, with status 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through as long as its body is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit:
            response = JSONResponse({"error": self._refusal().message}, 413)
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> RequestError:
        return RequestError(f"a request may have {self._limit:,} bytes", status=413)


class RequestMetrics:
    """Counts requests and their seconds by route, model and status."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, backend: Backend) -> None:
        self._app, self._backend = app, backend
        self._requests = Counter(
            "orch_requests", "Requests", ["route", "model", "status"], registry=registry
        )
        self._seconds = Histogram(
            "orch_request_seconds",
            "Seconds from a request's head to its answer",
            ["route", "model"],
            buckets=_SECONDS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and counts it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # 499: the client left before an answer began.
        start, status = time.perf_counter(), 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # Labels are routes and models that exist, so that clients can't grow the series.
            route = getattr(scope.get("route"), "path", "other")
            model = scope.get("path_params", {}).get("name", "")
            model = model if model in self._backend.cards else ""
            self._requests.labels(route, model, status).inc()
            self._seconds.labels(route, model).observe(time.perf_counter() - start)
