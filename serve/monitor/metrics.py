"""What Prometheus reads of requests, whatever they ask for."""

from __future__ import annotations

import collections
import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.backend import Backend
from orchestrator.serve.guards.refusals import broken
from orchestrator.serve.monitor.trace import SCOPE_KEY, Trace, request_id

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of every histogram of seconds."""
_LEFT = 499
"""Status of a request whose client was gone before an answer began."""


class RequestMetrics:
    """Counts requests and their seconds by route, model and status; gives each its trace and id.

    Args:
        statuses: counts answers by model ("" for none) and status too.

    The id is the client's own `X-Request-Id`, or a new one; the answer's header repeats it.
    """

    def __init__(
        self,
        app: ASGIApp,
        registry: CollectorRegistry,
        backend: Backend,
        statuses: collections.Counter[tuple[str, int]],
    ) -> None:
        self._app, self._backend, self._statuses = app, backend, statuses
        self._requests = Counter(
            "orch_requests", "Requests", ["route", "model", "status"], registry=registry
        )
        self._seconds = Histogram(
            "orch_request_seconds",
            "Seconds from a request's head to its answer",
            ["route", "model"],
            buckets=SECONDS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and counts it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(request_id(_given(scope)))
        scope[SCOPE_KEY] = trace
        status = _LEFT

        async def timed() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                trace.received = time.monotonic()
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", trace.id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, timed, watched)
        except ClientDisconnect:
            raise
        except Exception:
            # Else it would be answered outside of all middleware, without an id and uncounted.
            if status == _LEFT:
                await broken()(scope, receive, watched)
            raise
        finally:
            # Labels are routes and models that exist, so that clients can't grow the series.
            route = getattr(scope.get("route"), "path", "other")
            model = scope.get("path_params", {}).get("name", "")
            model = model if model in self._backend.cards else ""
            self._requests.labels(route, model, status).inc()
            # Whoever asks whether it is ready is told, and refused nothing.
            if not route.startswith("/v2/health/"):
                self._statuses[model, status] += 1
            self._seconds.labels(route, model).observe(time.monotonic() - trace.arrived)


def _given(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return bytes(value)
    return b""
