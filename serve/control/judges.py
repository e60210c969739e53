"""What a traffic rule learns from how requests went; lives in the operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.serve.traffic.rule import Outcome


class Judge(Protocol):
    """Learns from outcomes and rewards, and says so to every gateway's rule."""

    def observe(self, outcomes: Sequence[Outcome], rewards: Sequence[tuple[str, float]]) -> None:
        """Takes a gateway's report in.

        Args:
            outcomes: how requests went.
            rewards: (version, reward in 0..1), as clients reported them.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What the rule needs to know; JSON values."""
        ...


def make_judge(rule: Mapping[str, Any]) -> Judge | None:
    """The judge of a traffic section, or None for a rule that learns nothing."""
    return None
