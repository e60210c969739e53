"""A replica's side of the wire."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections.abc import Sequence
from typing import Protocol

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError
from orchestrator.serve.wire.frames import (
    BUFFER,
    Frame,
    FrameError,
    read_batch,
    read_frame,
    write_answers,
    write_frame,
)
from orchestrator.serve.wire.place import Place

_LOG = logging.getLogger(__name__)
_GONE = (OSError, RuntimeError)
"""What writing to a connection that is lost raises: RuntimeError is uvloop's."""
_GREETING_SECONDS = 5.0
"""Within which whoever connects has to say the secret."""
_STRANGERS = 4096
"""Bytes that are read of whoever has not said it."""


class Computes(Protocol):
    """Whatever answers batches; see `Pool.compute`."""

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """One batch."""
        ...


class Listener:
    """Answers the batches that gateways send.

    Args:
        model: computes them.
        host: of this machine, as gateways reach it.
        most: bytes of one batch's arrays.
    """

    def __init__(self, model: Computes, host: str, most: int = 2**34) -> None:
        self._model, self._most = model, most
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self.place = Place(host, self._socket.getsockname()[1], secrets.token_hex(32))
        self._connections: set[asyncio.StreamWriter] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._left = asyncio.Event()

    @property
    def under_way(self) -> int:
        """Batches that are not answered yet."""
        return len(self._under_way)

    async def run(self) -> None:
        """Answers until `leave` is called or it is cancelled."""
        self._server = await asyncio.start_server(self._greet, sock=self._socket, limit=BUFFER)
        await self._left.wait()

    async def leave(self) -> None:
        """Tells gateways to send nothing more, answers what there is, and ends."""
        if self._server is not None:
            self._server.close()
        for writer in self._connections:
            with contextlib.suppress(*_GONE):
                writer.write(write_frame({"leaves": True}))
        while self._under_way:
            await asyncio.wait(self._under_way)
        for writer in [*self._connections]:
            writer.close()
        self._left.set()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                greeting = await read_frame(reader, _STRANGERS)
            given = str(greeting.head.get("secret", ""))
            if not hmac.compare_digest(given.encode(), self.place.secret.encode()):
                return
            writer.write(write_frame({"welcome": True}))
            self._connections.add(writer)
            await self._answer(reader, writer)
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return
        except FrameError as error:
            _LOG.warning("a gateway's connection is closed: %s", error)
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame = await read_frame(reader, self._most)
            task = asyncio.ensure_future(self._computed(frame, writer))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _computed(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        number = frame.head.get("number", 0)
        try:
            number, requests, seconds = read_batch(frame)
            answer = write_answers(number, await self._model.compute(requests, seconds))
        except Exception as error:
            _LOG.exception("a batch could not be answered")
            answer = write_frame({"number": number, "failed": type(error).__name__})
        with contextlib.suppress(*_GONE):
            writer.write(answer)
            await writer.drain()
