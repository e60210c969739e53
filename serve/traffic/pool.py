"""The replicas of one version, as the queue before them sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from orchestrator.serve.backend import Computed, Heat, Inputs, NoAnswerError, Pixels
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.wire.place import Place

if TYPE_CHECKING:
    from orchestrator.run_folder.statistics import Statistics


class Pool(Protocol):
    """Replicas that compute batches of one version of a model."""

    @property
    def card(self) -> ModelCard:
        """What they answer for."""
        ...

    @property
    def max_batch(self) -> int:
        """Samples beyond which a larger batch brings nothing."""
        ...

    @property
    def replicas(self) -> int:
        """Those that compute, side by side."""
        ...

    @property
    def capacity(self) -> int:
        """Batches under way at most, so that no replica waits for its next one."""
        ...

    @property
    def shares(self) -> int:
        """Batches that a steady load is divided into."""
        ...

    async def available(self) -> None:
        """Waits a while for a replica where there is none at the moment.

        Raises:
            ReplicaLostError: if none came.
        """
        ...

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """One batch: an answer for each request, in their order; a bad one fails alone.

        Args:
            requests: inputs of several requests.
            seconds: how long an ensemble may take before those members that are done answer.

        Raises:
            ReplicaLostError: if the replica ended meanwhile, or there is none.
        """
        ...

    async def ready(self) -> bool:
        """Whether a replica would answer now."""
        ...

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """Where an image speaks for a label; see `Backend.explain`."""
        ...

    async def statistics(self) -> Statistics | None:
        """What the version saw when it was trained; see `Backend.statistics`."""
        ...


class VersionPool(Pool, Protocol):
    """A pool that follows where its replicas are."""

    def meet(self, places: Sequence[Place]) -> None:
        """Learns where replicas listen now."""
        ...

    async def close(self) -> None:
        """Lets go of what it holds; nothing is asked of it any more."""
        ...


class OneBatch:
    """A pool that has one batch under way at a time: for copies, which must leave room.

    Args:
        pool: the replicas.
    """

    replicas = capacity = shares = 1

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.card, self.max_batch = pool.card, pool.max_batch

    async def available(self) -> None:
        """See `Pool.available`."""
        await self._pool.available()

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """See `Pool.compute`."""
        return await self._pool.compute(requests, seconds)

    async def ready(self) -> bool:
        """See `Pool.ready`."""
        return await self._pool.ready()

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """See `Pool.explain`."""
        return await self._pool.explain(pixels, label)

    async def statistics(self) -> Statistics | None:
        """See `Pool.statistics`."""
        return await self._pool.statistics()
