"""How often one client may ask."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.serve.errors import RequestError
from orchestrator.serve.guards.keys import CLIENT, OPEN_PATHS
from orchestrator.serve.guards.refusals import refuse

CLIENTS = 10_000
"""Clients that are remembered; of more, those that have not asked for longest are forgotten."""
_LOOPBACK = ("127.0.0.1", "::1")


class Buckets:
    """A token bucket for each client: filled at a rate, holding twice what one second brings.

    Args:
        rate: requests a second.
        clients: see `CLIENTS`.
    """

    def __init__(self, rate: float, clients: int = CLIENTS) -> None:
        self._rate, self._most = rate, max(1.0, 2 * rate)
        self._clients = clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str, now: float) -> float:
        """Takes a token: 0 if there was one, else the seconds until there is.

        Args:
            now: in seconds, on any clock that does not go back.
        """
        tokens, at = self._buckets.get(client, (self._most, now))
        tokens = min(self._most, tokens + (now - at) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return wait


class RateLimit:
    """Answers 429 to a client that asks too often, and says when to come back.

    A client is its API key; without keys, its address.
    """

    def __init__(self, app: ASGIApp, rate: float) -> None:
        self._app, self._rate, self._buckets = app, rate, Buckets(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through that has a token."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            wait = self._buckets.take(scope.get(CLIENT) or address_of(scope), time.monotonic())
            if wait:
                error = RequestError(
                    f"a client may ask {self._rate:g} times a second; wait {wait:.3g} seconds",
                    429,
                    {"Retry-After": str(math.ceil(wait))},
                )
                await refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def address_of(scope: Scope) -> str:
    """Where a request comes from: its peer, or what a proxy on this machine says of its own."""
    peer = (scope.get("client") or ("", 0))[0]
    if peer in _LOOPBACK:
        # A proxy adds the address that it saw at the end; what stands before it is anyone's word.
        lines = Headers(scope=scope).getlist("x-forwarded-for")
        told = ",".join(lines).rpartition(",")[2].strip()
        return told[:64] or str(peer)
    return str(peer)
