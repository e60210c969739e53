"""How `orch sweep` shows what happens: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from orchestrator.cli.progress import relative
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.errors import RunFolderError
from orchestrator.pipeline import StageEvent
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.status import Status
from orchestrator.sweep.events import (
    SweepEvent,
    SweepState,
    TrialFailed,
    TrialFinished,
    TrialPruned,
    TrialReported,
    TrialRetried,
    TrialStarted,
)
from orchestrator.sweep.leaderboard import Row
from orchestrator.table import Line, Table

WATCH_S = 10.0
COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}


class SweepView:
    """Follows a pipeline on stderr."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._config, self._monitor = config, config.evaluate.monitor
        self._console = Console(stderr=True, highlight=False)
        self._state, self._began = SweepState(), time.monotonic()
        self._stages: list[StageEvent] = []
        self._watched: tuple[Path, ...] = ()
        self._board: tuple[Row, ...] = ()
        self._live: Live | None = None
        self._closed = threading.Event()

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=2
            )
            self._live.start()
        else:
            threading.Thread(target=self._report_watched, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if self._live:
            self._live.stop()

    def listen(self, event: SweepEvent | StageEvent) -> None:
        """Takes one event of the pipeline."""
        if isinstance(event, StageEvent):
            self._watched = () if event.done else event.folders
            self._stages.append(event)
            self._board = event.trials or self._board
            line = f"{event.name}: {event.message}"
        else:
            self._state.apply(event)
            line = describe(event, self._monitor)
        if not self._live:
            self._console.print(f"[{self._elapsed()}] {line}", markup=False, soft_wrap=True)

    def summary(self, table: Table) -> None:
        """Prints the leaderboard, the comparison, and the line that serves it."""
        out = Console(highlight=False)
        out.print(self._leaderboard())
        out.print(comparison(table))
        out.print(verdict(table))
        folder = relative(Path(table.lines[0].folder).parents[1])
        out.print(f"took {self._elapsed()}; everything is in {folder}")
        out.print(f"serve it: orch serve {folder}")

    # --- drawing ---------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        stage = self._stages[-1] if self._stages else None
        head = f"{self._elapsed()}  {stage.name}: {stage.message}" if stage else "starting Ray"
        parts: list[RenderableType] = [Text(head)]
        if self._state.rows:
            parts.append(self._trials())
        parts += [Text(line) for line in self._progress()]
        return Group(*parts)

    def _trials(self) -> RichTable:
        """The trials of this attempt, as they run."""
        table = self._columns("epoch", "last", "best", "steps/s")
        for row in self._state.rows:
            table.add_row(
                row.id,
                Text(row.state, style=COLOURS[row.state]),
                *(number(row.params.get(key)) for key in self._keys()),
                f"{row.epoch:.2f}",
                metric(row.value),
                metric(row.best),
                "" if row.rate is None else f"{row.rate:.1f}",
            )
        return table

    def _leaderboard(self) -> RichTable:
        """Every trial, best first."""
        table = self._columns("best", "at epoch", "seconds", title=f"leaderboard ({self._monitor})")
        for row in self._board:
            table.add_row(
                row.id,
                Text(row.state, style=COLOURS[row.state]),
                *(number(row.params.get(key)) for key in self._keys()),
                metric(row.value),
                "" if row.epoch is None else f"{row.epoch:.2f}",
                f"{row.seconds:.0f}",
            )
        return table

    def _columns(self, *names: str, title: str | None = None) -> RichTable:
        table = RichTable(title=title, title_justify="left")
        keys = [key.rpartition(".")[2] for key in self._keys()]
        for name in ("trial", "state", *keys, *names):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        return table

    def _keys(self) -> list[str]:
        return list(self._config.sweep.space) if self._config.sweep else []

    def _progress(self) -> list[str]:
        """One line for each watched run, from its `status.json`."""
        lines = []
        for root in self._watched:
            try:
                status = Status.read(RunPaths(root).status)
            except RunFolderError:
                continue
            if status is not None:
                best = f"  best {self._monitor} {status.best.value:.4f}" if status.best else ""
                lines.append(f"{root.name}: {status.state}, epoch {status.epoch:.2f}{best}")
        return lines

    def _report_watched(self) -> None:
        """Says every few seconds how far the watched runs are, where there is no live table."""
        said: list[str] = []
        while not self._closed.wait(WATCH_S):
            lines = self._progress()
            for line in lines:
                if line not in said:
                    self._console.print(f"[{self._elapsed()}] {line}", markup=False)
            said = lines

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes:02d}:{seconds:02d}"


def describe(event: SweepEvent, monitor: str) -> str:
    """One event as a line."""
    head = f"trial {event.id}"
    match event:
        case TrialStarted(params=params, resumed=resumed):
            shown = "  ".join(
                f"{key.rpartition('.')[2]}={number(value)}" for key, value in params.items()
            )
            return f"{head} {'resumed' if resumed else 'started'}  {shown}"
        case TrialReported(epoch=epoch, value=value, best=best):
            return f"{head} epoch {epoch:.2f}  {monitor} {value:.4f}  best {best:.4f}"
        case TrialPruned(step=step):
            return f"{head} stopped by the scheduler at step {step}"
        case TrialFinished(best=best):
            return f"{head} finished  best {monitor} {best:.4f}"
        case TrialFailed(why=why):
            return f"{head} failed: {why}"
        case TrialRetried(why=why, attempt=attempt):
            return f"{head} is started again (attempt {attempt}): {why}"
    return head


def comparison(table: Table) -> RichTable:
    """The comparison on the test split."""
    drawn = RichTable(title=f"{table.split} split", title_justify="left")
    for name in ("model", "accuracy", "NLL", "parameters", "members", "best val"):
        drawn.add_column(name, justify="left" if name == "model" else "right")
    for line in table.lines:
        drawn.add_row(
            line.name,
            f"{line.accuracy:.2%}",
            f"{line.nll:.4f}",
            f"{line.parameters:,}",
            str(line.members),
            "" if line.monitored is None else f"{line.monitored:.4f}",
        )
    return drawn


def verdict(table: Table) -> str:
    """The two differences that the pipeline is about, with the size of chance."""
    pairs = [("ensemble", "best single"), ("student", "baseline")]
    lines = [
        f"{one} − {other}: {100 * (a.accuracy - b.accuracy):+.2f} points"
        for one, other in pairs
        if (a := table.line(one)) and (b := table.line(other))
    ]
    first = table.lines[0]
    return "\n".join([*lines, f"one standard error: {100 * standard_error(first):.2f} points"])


def standard_error(line: Line) -> float:
    """Of an accuracy over independent samples: √(p(1−p)/n)."""
    return float((line.accuracy * (1 - line.accuracy) / max(line.samples, 1)) ** 0.5)


def number(value: Any) -> str:
    """A parameter as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def metric(value: float | None) -> str:
    """A metric as people read it."""
    return "" if value is None else f"{value:.4f}"
