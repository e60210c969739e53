"""The replicas of one version, as the queue before them sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError
from orchestrator.serve.cards import ModelCard


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
    def capacity(self) -> int:
        """Batches to have under way, so that no replica waits for its next one."""
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
