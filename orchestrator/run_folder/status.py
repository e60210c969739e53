"""`status.json`: how far a run is, how good, and why it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import RunFolderError
from orchestrator.files import read_json, write_json

State = Literal["running", "done", "failed", "interrupted", "pruned"]
FINISHED: tuple[State, ...] = ("done", "pruned")
"""States that `--resume` has nothing to add to."""

PROGRESS_S = 2.0
"""Progress is written at most this often, because every write waits for the disk."""


@dataclass(frozen=True)
class Best:
    """The best evaluation: its step, the monitored value, and every metric of that moment."""

    step: int
    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What `status.json` holds.

    Attributes:
        digest: of the configuration that decides results.
        epoch: fractional, such as 1.5.
        last: the newest metrics, by ``<split>/<name>``.
        timings: seconds by name, summed over restarts.
        started, ended: ISO 8601, UTC.
        restarts: how often the run went on after an interruption.
    """

    state: State
    kind: Literal["run", "sweep"] = "run"
    digest: str = ""
    why: str = ""
    step: int = 0
    epoch: float = 0.0
    best: Best | None = None
    last: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    started: str = ""
    ended: str | None = None
    restarts: int = 0

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to resume."""
        return self.state in FINISHED

    @classmethod
    def read(cls, path: Path) -> Status | None:
        """Reads the file; None when it is not there.

        Raises:
            RunFolderError: if it is no status file.
        """
        try:
            value = read_json(path)
            known = {one.name for one in fields(cls)}
            value = {key: item for key, item in value.items() if key in known}
            best = value.pop("best", None)
            return cls(**value, best=Best(**best) if best else None)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{path} is not a run's status ({error}); remove the folder, or choose name=…"
            ) from None


class StatusFile:
    """Keeps `status.json` up to date; every write replaces the file atomically."""

    def __init__(self, path: Path, status: Status) -> None:
        self.path, self.status = path, status
        self._written = 0.0
        self._write()

    def progress(self, step: int, epoch: float, last: Mapping[str, float] | None = None) -> None:
        """Notes how far the run is, and its newest metrics (earlier ones of other names stay)."""
        last = {**self.status.last, **(last or {})}
        self.status = replace(self.status, step=step, epoch=epoch, last=last)
        if time.monotonic() - self._written >= PROGRESS_S:
            self._write()

    def best(self, step: int, value: float, metrics: Mapping[str, float]) -> None:
        """Notes a new best evaluation."""
        self.status = replace(self.status, best=Best(step, value, dict(metrics)))
        self._write()

    def timing(self, name: str, seconds: float) -> None:
        """Adds seconds to a named sum; written with the next update."""
        timings = dict(self.status.timings)
        timings[name] = round(timings.get(name, 0.0) + seconds, 3)
        self.status = replace(self.status, timings=timings)

    def redigest(self, digest: str) -> None:
        """Notes the digest of a configuration that was resolved further."""
        self.status = replace(self.status, digest=digest)
        self._write()

    def rewind(self, step: int, epoch: float, best: Best | None) -> None:
        """Goes back to the checkpoint that the run is resumed from."""
        self.status = replace(self.status, step=step, epoch=epoch, best=best)
        self._write()

    def finish(self, state: State, why: str) -> None:
        """Notes the end. `why` is a sentence, such as ``all 3 epochs trained``."""
        self.status = replace(self.status, state=state, why=why, ended=utc_now())
        self._write()

    def _write(self) -> None:
        values: dict[str, Any] = {"format": 1, **asdict(self.status)}
        write_json(self.path, values)
        self._written = time.monotonic()


def utc_now() -> str:
    """The time in UTC, as in ``2025-01-31T12:00:00Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
