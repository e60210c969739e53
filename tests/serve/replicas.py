"""Replicas whose batches are done when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.serve.backend import Computed, Heat, Inputs, NoAnswerError, Pixels
from orchestrator.serve.cards import ModelCard

CARD = ModelCard("pets", (1, 1, 1), ("cat", "dog"))


class Replicas:
    """Two replicas whose batches are done when the test says so."""

    card, max_batch = CARD, 8
    replicas, capacity, shares = 2, 4, 3

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seconds: list[float | None] = []
        self._done: list[asyncio.Future[None]] = []

    async def available(self) -> None:
        return None

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        self.sizes.append(sum(map(len, requests)))
        self.seconds.append(seconds)
        self._done.append(asyncio.get_running_loop().create_future())
        await self._done[-1]
        return [Computed(np.full((len(one), 2), 0.5, np.float32)) for one in requests]

    def finish(self, number: int, error: Exception | None = None) -> None:
        """Ends a batch, counted from 0."""
        if error is None:
            self._done[number].set_result(None)
        else:
            self._done[number].set_exception(error)

    async def ready(self) -> bool:
        return True

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        raise NotImplementedError

    async def statistics(self) -> None:
        return None


async def settle() -> None:
    """Lets everything happen that waits for nothing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(180):
        while not true():
            await asyncio.sleep(0.001)
