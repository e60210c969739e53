"""A gateway's side of the wire: one connection to one replica."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError, ReplicaLostError
from orchestrator.serve.wire.frames import (
    BUFFER,
    Frame,
    FrameError,
    read_answers,
    read_frame,
    write_batch,
    write_frame,
)
from orchestrator.serve.wire.place import Place

_CONNECT_SECONDS = 2.0
_MOST = 2**34
"""Bytes of one frame's arrays."""


class Connection:
    """An open connection; several batches may be under way on it. One event loop's.

    Attributes:
        leaves: whether the replica takes no more batches.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ended: Callable[[], None]
    ) -> None:
        self._reader, self._writer, self._ended = reader, writer, ended
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._numbers = itertools.count(1)
        self.leaves = False
        self._task = asyncio.ensure_future(self._receive())

    @classmethod
    async def open(cls, place: Place, ended: Callable[[], None]) -> Connection:
        """Connects to a replica.

        Args:
            ended: called once the connection has ended.

        Raises:
            OSError: if nobody answers there as a replica does.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(place.host, place.port, limit=BUFFER)
                try:
                    writer.write(write_frame({"secret": place.secret}))
                    await read_frame(reader, 0)
                except BaseException:
                    writer.close()
                    raise
        except (TimeoutError, asyncio.IncompleteReadError, FrameError) as error:
            raise OSError(f"no replica answers at {place.host}:{place.port}") from error
        return cls(reader, writer, ended)

    @property
    def under_way(self) -> int:
        """Batches that are not answered yet."""
        return len(self._waiting)

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """One batch; see `Pool.compute`."""
        if self._task.done() or self._writer.is_closing():
            raise ReplicaLostError("the replica has ended")
        number = next(self._numbers)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        # One that nobody waits for any more counts as under way until the replica is done with it.
        self._waiting[number] = answer
        self._writer.write(write_batch(number, requests, seconds))
        frame = await answer
        if failed := frame.head.get("failed"):
            raise NoAnswerError(f"the model failed ({failed})")
        try:
            return read_answers(frame)
        except FrameError as error:
            raise ReplicaLostError(str(error)) from error

    async def _receive(self) -> None:
        try:
            while True:
                frame = await read_frame(self._reader, _MOST)
                self.leaves = self.leaves or bool(frame.head.get("leaves"))
                waiting = self._waiting.pop(frame.head.get("number", 0), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
        except (asyncio.IncompleteReadError, FrameError, OSError):
            pass
        finally:
            self._close()

    def _close(self) -> None:
        self._writer.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ReplicaLostError("the replica has ended"))
        self._ended()

    async def close(self) -> None:
        """Ends the connection; what is under way is lost."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
