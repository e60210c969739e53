"""Clients that leave before they are answered."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.guards.sweeping import Sweeper

_PATIENCE = 0.05
"""Seconds after which somebody looks whether the client is still there; most answers are faster,
and looking costs a task."""


class LeavingClients:
    """Gives a request up when its client has left, so that nothing is computed for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = Sweeper[_Request](_PATIENCE, _Request.look)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        one = _Request(receive, send)
        self._open.add(one)
        try:
            await self._app(scope, one.receive, one.send)
        except asyncio.CancelledError:
            if not one.left:
                raise
            one.task.uncancel()
        finally:
            self._open.discard(one)
            one.close()


class _Request:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[object] = task
        self.left = False
        self._whole = self._answered = False
        self._watch: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def receive(self) -> Message:
        message = await self._receive()
        # Only then do all further messages say that the client has left.
        self._whole = message["type"] == "http.request" and not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        self._answered = True
        await self._send(message)

    def look(self, seconds: float) -> None:
        """Begins to watch the client of a request that is there and takes its time."""
        if self._whole and not self._answered and self._watch is None and seconds >= _PATIENCE:
            self._watch = asyncio.ensure_future(self._until_it_leaves())

    async def _until_it_leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answered:
            self.left = True
            self.task.cancel()
