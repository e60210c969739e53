"""`metrics.jsonl` in the run folder: the tracker that every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import JsonLines, now
from orchestrator.tracking.base import Artifact


class RunFileTracker:
    """Appends one line for each split that is logged: step, epoch, split, values, wall time.

    The file is opened at the first line, so that a resumed run can cut it before.
    """

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._lines: JsonLines | None = None

    def start(
        self, config: Mapping[str, Any], *, name: str, group: str | None, job_type: str
    ) -> None:
        """Does nothing: the run folder has its own configuration."""

    def log(self, step: int, values: Mapping[str, float], *, epoch: float) -> None:
        """See `Tracker`.

        Raises:
            WorkError: when the disk is full.
        """
        if self._lines is None:
            self._lines = JsonLines(self._paths.metrics)
        splits: dict[str, dict[str, float]] = {}
        for key, value in values.items():
            split, _, name = key.partition("/")
            splits.setdefault(split, {})[name] = value
        for split, named in splits.items():
            line = {"step": step, "epoch": round(epoch, 6), "split": split, "values": named}
            self._lines.append({**line, "wall": now()})

    def summary(self, values: Mapping[str, float]) -> None:
        """Does nothing: `status.json` has the best metrics."""

    def use(self, artifact: Artifact) -> None:
        """Does nothing: the configuration names the teacher."""

    def finish(self, state: str, outputs: Sequence[Artifact] = ()) -> None:
        """Closes the file."""
        if self._lines is not None:
            self._lines.sync()
            self._lines.close()
            self._lines = None
