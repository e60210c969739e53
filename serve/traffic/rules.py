"""The rules of `serve.traffic`, built from their sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.serving import Latest
from orchestrator.serve.traffic.rule import Rule


class LatestRule:
    """The version that was added last answers."""

    def __init__(self, config: Latest) -> None:
        self._shadows = config.shadows

    def choose(self, sticky: str, versions: Sequence[str]) -> str:
        """See `Rule.choose`."""
        candidates = [one for one in versions if one not in self._shadows]
        return (candidates or list(versions))[-1]

    def shadows(self, chosen: str, versions: Sequence[str]) -> Sequence[str]:
        """See `Rule.shadows`."""
        return [one for one in versions if one in self._shadows and one != chosen]

    def shares(self, versions: Sequence[str]) -> dict[str, float]:
        """See `Rule.shares`."""
        chosen = self.choose("", versions)
        return {one: float(one == chosen) for one in versions}


def latest(config: Latest, *, state: Mapping[str, Any]) -> Rule:
    """Builds `traffic: {type: latest}`."""
    return LatestRule(config)
