"""The body of a request: its size, its compression, and how long it may take to come."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.errors import RequestError, without_frames
from orchestrator.serve.guards.refusals import refuse
from orchestrator.serve.guards.sweeping import Sweeper

ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""What a body may be compressed with, and the window that zlib calls it by."""
_ROOM = 8
_LEAST_ROOM = 64 * 2**20
_LOOK = 0.25
"""Seconds between two looks at bodies that are still coming."""


@dataclass
class BodyLimits:
    """What bodies are held to.

    Attributes:
        bytes: of one body, after it was inflated.
        seconds: that one body may take to come.
        room: bytes of all bodies together, at one moment.
        held: bytes that there are at this moment.
    """

    bytes: int
    seconds: float
    room: int = 0
    held: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.room = self.room or max(_ROOM * self.bytes, _LEAST_ROOM)


class BodyGuard:
    """Inflates bodies, and refuses those that are too large, too slow or not whole."""

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self._app, self._limits = app, limits
        self._coming = Sweeper[_Body](min(_LOOK, limits.seconds / 4), self._look)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through as long as its body is as it should be."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self._limits, self._coming, receive, send)
        try:
            body.expect(scope)
            await self._app(scope, body.receive, body.send)
        except RequestError as error:
            if error is not body.refusal:
                raise
        except ClientDisconnect:
            return
        finally:
            self._coming.discard(body)
            self._limits.held -= body.held
            if body.refusal is not None:
                without_frames(body.refusal)
        if body.refusal is not None and not body.answered:
            await refuse(body.refusal)(scope, receive, send)

    def _look(self, body: _Body, seconds: float) -> None:
        if seconds > self._limits.seconds:
            body.give_up()


class _Body:
    """One request's messages on their way in and out."""

    def __init__(
        self, limits: BodyLimits, coming: Sweeper[_Body], receive: Receive, send: Send
    ) -> None:
        self._limits, self._coming = limits, coming
        self._receive, self._send = receive, send
        self._inflater: zlib._Decompress | None = None
        self._begun = self._whole = self._slow = False
        self._waiting: asyncio.Task[object] | None = None
        self.size = self.held = 0
        self.answered = False
        self.refusal: RequestError | None = None
        """Why the request goes no further; it takes the place of whatever the routes answer."""

    def expect(self, scope: Scope) -> None:
        """Reads what the head says of the body."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._limits.bytes:
                raise self._refused(self._too_large())
            if name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                encoding = value.decode("latin-1").lower()
                if encoding not in ENCODINGS:
                    raise self._refused(
                        RequestError(
                            f"Content-Encoding is gzip or deflate, not {encoding[:40]!r}",
                            415,
                            {"Accept-Encoding": "gzip, deflate"},
                        )
                    )
                self._inflater = zlib.decompressobj(ENCODINGS[encoding])

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        message = await self._in_time()
        if message["type"] != "http.request":
            return message
        if not message.get("more_body", False):
            self._whole = True
            self._coming.discard(self)
        data = message.get("body", b"")
        if self._inflater is not None:
            data = self._inflated(self._inflater, data)
            message = {**message, "body": data}
        self.size += len(data)
        if self.size > self._limits.bytes:
            raise self._refused(self._too_large())
        self._hold(len(data))
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is None:
            self.answered = True
            await self._send(message)

    def give_up(self) -> None:
        """Ends waiting for the rest of the body."""
        if self._waiting is not None and not self._slow:
            self._slow = True
            self._waiting.cancel()

    async def _in_time(self) -> Message:
        if not self._begun:
            self._begun = True
            self._coming.add(self)
        self._waiting = asyncio.current_task()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._slow or self._waiting is None:
                raise
            self._waiting.uncancel()
            raise self._refused(self._too_slow()) from None
        finally:
            self._waiting = None

    def _inflated(self, inflater: zlib._Decompress, data: bytes) -> bytes:
        """The next piece, never more than one byte beyond the limit."""
        try:
            made = inflater.decompress(data, self._limits.bytes - self.size + 1)
        except zlib.error:
            raise self._refused(
                RequestError("the body is not compressed as its Content-Encoding says")
            ) from None
        cut_short = self._whole and not inflater.eof and not inflater.unconsumed_tail
        if inflater.unused_data or cut_short:
            raise self._refused(RequestError("the compressed body is cut short, or has a rest"))
        return made

    def _hold(self, size: int) -> None:
        # What is refused takes no room, or bodies that arrive together would refuse each other.
        if self._limits.held + size > self._limits.room:
            raise self._refused(
                RequestError("the server holds as many requests as it can; try again", 503)
            )
        self.held += size
        self._limits.held += size

    def _too_slow(self) -> RequestError:
        return RequestError(
            f"a request has to be there within {self._limits.seconds:g} seconds; "
            f"{self.size:,} bytes of its body came",
            408,
            {"Connection": "close"},
        )

    def _too_large(self) -> RequestError:
        return RequestError(f"a request may have {self._limits.bytes:,} bytes", 413)

    def _refused(self, error: RequestError) -> RequestError:
        self.refusal = error
        return error
