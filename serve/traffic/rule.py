"""What decides which version answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """How one request went.

    Attributes:
        version: who was asked.
        failed: whether the model, not the client, was at fault.
        seconds: from the request's arrival in the queue to its answer; infinite for one whose own
            deadline came first.
        shadow: whether nobody waited for it.
    """

    version: str
    failed: bool
    seconds: float
    shadow: bool = False


class Rule(Protocol):
    """Chooses among a model's versions."""

    def choose(self, sticky: str, versions: Sequence[str]) -> str:
        """The version that answers.

        Args:
            sticky: the same value gets the same version; empty draws anew.
            versions: those that are ready, the one added last at the end; at least one.
        """
        ...

    def shadows(self, chosen: str, versions: Sequence[str]) -> Sequence[str]:
        """Versions that get a copy."""
        ...

    def shares(self, versions: Sequence[str]) -> dict[str, float]:
        """Each version's share of the requests, summing to 1; for people and metrics."""
        ...
