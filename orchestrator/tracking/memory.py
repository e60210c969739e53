"""A tracker that keeps everything in dictionaries: for tests and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.tracking.base import Artifact


class DictTracker:
    """Remembers what it was told.

    Attributes:
        run: `config`, `name`, `group` and `job_type` of the start.
        history: for each step, the values by ``<split>/<name>`` and the epoch as ``epoch``.
        final: the summary.
        used, made: inputs and outputs.
        state: None until the end.
    """

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.history: dict[int, dict[str, float]] = {}
        self.final: dict[str, float] = {}
        self.used: list[Artifact] = []
        self.made: list[Artifact] = []
        self.state: str | None = None

    def start(
        self, config: Mapping[str, Any], *, name: str, group: str | None, job_type: str
    ) -> None:
        """See `Tracker`."""
        self.run = {"config": dict(config), "name": name, "group": group, "job_type": job_type}
        self.state = None

    def log(self, step: int, values: Mapping[str, float], *, epoch: float) -> None:
        """See `Tracker`."""
        self.history.setdefault(step, {}).update(values, epoch=epoch)

    def summary(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.final.update(values)

    def use(self, artifact: Artifact) -> None:
        """See `Tracker`."""
        self.used.append(artifact)

    def finish(self, state: str, outputs: Sequence[Artifact] = ()) -> None:
        """See `Tracker`."""
        self.state = state
        self.made += outputs
