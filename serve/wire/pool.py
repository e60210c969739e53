"""The replicas of one version, over the wire."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError, ReplicaLostError
from orchestrator.serve.control.table import Started
from orchestrator.serve.wire.connection import Connection
from orchestrator.serve.wire.place import Place

BATCHES = 2
"""Batches under way for each replica: one is computed while the next one travels."""
_RETRY_SECONDS = 0.2
_WAIT_SECONDS = 5.0
"""How long a batch waits for a replica where there is none at the moment."""


class WirePool:
    """Keeps a connection to each replica, and gives batches to the one that has least to do.

    One event loop's; see `Pool`.

    Args:
        started: what the replicas answer for.
        batches: under way for each replica.
        spare: batches beyond those, by which replicas see that they are too few.
    """

    def __init__(self, started: Started, batches: float = BATCHES, spare: int = 0) -> None:
        self.card, self.max_batch = started.card, started.max_batch
        self._batches, self._spare = batches, spare
        self._places: tuple[Place, ...] = ()
        self._open: dict[Place, Connection] = {}
        self._opening: dict[Place, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def replicas(self) -> int:
        """See `Pool.replicas`."""
        return len(self._usable())

    @property
    def capacity(self) -> int:
        """See `Pool.capacity`."""
        return math.ceil(self._batches * max(1, self.replicas)) + self._spare

    @property
    def shares(self) -> int:
        """One for each replica and one that gathers.

        Where batches under way are what replicas are counted by, as many as there may be: with
        fewer, a load would never ask for another replica.
        """
        return self.capacity if self._spare else self.replicas + 1

    def meet(self, places: Sequence[Place]) -> None:
        """Connects to replicas that are new; see `Pool.meet`.

        Those that are listed no more are kept as long as they answer: an operator that has just
        restarted knows of none.
        """
        self._places = tuple(places)
        for place in self._places:
            if not self._closed and place not in self._open and place not in self._opening:
                self._opening[place] = asyncio.ensure_future(self._connect(place))

    async def _connect(self, place: Place) -> None:
        """Connects, again and again as long as the replica is listed."""
        try:
            while place in self._places and place not in self._open:
                try:
                    self._open[place] = await Connection.open(place, lambda: self._ended(place))
                except OSError:
                    await asyncio.sleep(_RETRY_SECONDS)
            self._changed.set()
        finally:
            del self._opening[place]

    def _ended(self, place: Place) -> None:
        self._open.pop(place, None)
        # A break of the line is mended; one that has ended is soon listed no more.
        loop = asyncio.get_running_loop()
        loop.call_later(_RETRY_SECONDS, lambda: self.meet(self._places))

    def _usable(self) -> list[Connection]:
        return [one for one in self._open.values() if not one.leaves]

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """See `Pool.compute`."""
        usable = self._usable()
        if not usable:
            raise self._none()
        return await min(usable, key=lambda one: one.under_way).compute(requests, seconds)

    async def available(self) -> None:
        """See `Pool.available`."""
        if self._usable():
            return
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                while not self._usable():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self._none() from None

    def _none(self) -> ReplicaLostError:
        return ReplicaLostError(f"model {self.card.name!r} has no replica")

    async def ready(self) -> bool:
        """See `Pool.ready`."""
        return bool(self._usable())

    async def close(self) -> None:
        """See `Pool.close`."""
        self._closed = True
        for task in [*self._opening.values()]:
            task.cancel()
        for connection in [*self._open.values()]:
            await connection.close()
        self._open.clear()
