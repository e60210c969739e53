"""What happens in a sweep, as values, and their sum as rows that a live table can draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class SweepEvent:
    """Something that happened to one trial.

    Attributes:
        id: the trial, such as ``007``.
        time: seconds since 1970.
    """

    id: str
    time: float


@dataclass(frozen=True)
class TrialStarted(SweepEvent):
    """A trial was handed out; `resumed` when an earlier attempt left checkpoints behind."""

    params: Mapping[str, Any]
    resumed: bool = False


@dataclass(frozen=True)
class TrialReported(SweepEvent):
    """A trial evaluated itself; `value` is the monitored metric, `best` its best so far."""

    step: int
    epoch: float
    value: float
    best: float


@dataclass(frozen=True)
class TrialPruned(SweepEvent):
    """The scheduler stopped a trial at `step`."""

    step: int
    best: float | None


@dataclass(frozen=True)
class TrialFinished(SweepEvent):
    """A trial ran to its end."""

    best: float


@dataclass(frozen=True)
class TrialFailed(SweepEvent):
    """A trial failed for good."""

    why: str


@dataclass(frozen=True)
class TrialRetried(SweepEvent):
    """A trial's worker died; it will be started again, for the `attempt`-th time."""

    why: str
    attempt: int


@dataclass(frozen=True)
class TrialRow:
    """One line of the live table.

    Attributes:
        rate: optimizer steps a second between the last two reports; None before the second.
        why: why it failed, was pruned or was started again.
    """

    id: str
    state: State
    params: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    epoch: float = 0
    value: float | None = None
    best: float | None = None
    rate: float | None = None
    why: str = ""
    seen: float = 0
    """When the last event came."""


class SweepState:
    """Folds events into one row a trial."""

    def __init__(self) -> None:
        self._rows: dict[str, TrialRow] = {}

    def apply(self, event: SweepEvent) -> TrialRow:
        """Takes one event and returns the row that it changed."""
        row = self._rows.get(event.id) or TrialRow(event.id, "running")
        row = replace(_changed(row, event), seen=event.time)
        self._rows[event.id] = row
        return row

    @property
    def rows(self) -> list[TrialRow]:
        """Every trial seen so far, by id."""
        return sorted(self._rows.values(), key=lambda row: row.id)

    def count(self, state: State) -> int:
        """How many trials are in a state."""
        return sum(row.state == state for row in self._rows.values())


def _changed(row: TrialRow, event: SweepEvent) -> TrialRow:
    match event:
        case TrialStarted(params=params):
            return replace(row, state="running", params=params, rate=None, step=0, why="")
        case TrialReported(step=step, epoch=epoch, value=value, best=best):
            rate = _rate(row, step, event.time)
            return replace(row, step=step, epoch=epoch, value=value, best=best, rate=rate)
        case TrialPruned(step=step, best=best):
            return replace(row, state="pruned", best=best, why=f"pruned at step {step}")
        case TrialFinished(best=best):
            return replace(row, state="complete", best=best)
        case TrialFailed(why=why):
            return replace(row, state="failed", why=why)
        case TrialRetried(why=why):
            return replace(row, state="running", why=why)
    return row


def _rate(row: TrialRow, step: int, time: float) -> float | None:
    # The first report of an attempt has no known start: a resumed one begins at its checkpoint.
    if row.step == 0 or step <= row.step or time <= row.seen:
        return None
    return (step - row.step) / (time - row.seen)
