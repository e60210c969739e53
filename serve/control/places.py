"""Where the replicas of each version listen."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.serve.wire.place import Place

BEAT_SECONDS = 2.0
"""How often a replica says that it is there."""
_SILENT_SECONDS = 10.0
"""After which one that says nothing is listed no more."""


class Places:
    """A list that replicas keep themselves on."""

    def __init__(self) -> None:
        self._heard: dict[str, dict[Place, float]] = {}

    def enlist(self, key: str, place: Place, now: float) -> bool:
        """Notes that a replica is there: whether it was not known.

        Args:
            key: of its version.
            now: in seconds, on any clock that does not go back.
        """
        listed = self._heard.setdefault(key, {})
        new = place not in listed
        listed[place] = now
        return new

    def expire(self, now: float) -> bool:
        """Takes those off that were silent for long: whether there were any."""
        before = sum(map(len, self._heard.values()))
        kept = {
            key: {place: at for place, at in listed.items() if now - at < _SILENT_SECONDS}
            for key, listed in self._heard.items()
        }
        self._heard = {key: listed for key, listed in kept.items() if listed}
        return sum(map(len, kept.values())) < before

    def listed(self) -> Mapping[str, tuple[Place, ...]]:
        """Places by version."""
        return {key: tuple(listed) for key, listed in self._heard.items()}
