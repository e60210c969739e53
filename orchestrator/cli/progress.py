"""How `orch train` shows progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.rules import PER_TOKEN
from orchestrator.finish import RunResult
from orchestrator.loop import StepInfo
from orchestrator.run_folder.status import Status

REFRESH_S = 1.0
LINE_S = 10.0
GO_ON = "go on with the same command and --resume"


class TrainProgress:
    """Follows one training run on stderr."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._monitor = config.evaluate.monitor
        self._labels = config.task.type not in PER_TOKEN
        self._console = Console(stderr=True)
        self._shown = time.monotonic()
        self._since: float | None = None
        self._samples = 0
        self._value: float | None = None
        self._began = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TrainProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[rest]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("preparing", total=None, rest="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, info: StepInfo) -> None:
        """Takes one step; the loss is read at most once a second, as that waits for the device."""
        now = time.monotonic()
        if self._since is None:
            # The clock starts behind the first step: reading the data is not the rate's fault.
            self._since = now
        else:
            self._samples += info.samples
        pause = REFRESH_S if self._bar else LINE_S
        if info.evaluation is not None:
            self._value = info.evaluation.values[self._monitor]
        elif now - self._shown < pause and info.step < info.total:
            return
        self._shown = now
        rate = self._samples / max(now - self._since, 1e-9)
        rest = f"loss {float(info.loss):.4f}"
        if self._samples:
            rest += f"  {rate:,.0f} samples/s"
        if self._value is not None:
            rest += f"  {self._monitor} {self._value:.4f}"
        if self._bar and self._task is not None:
            self._bar.update(
                self._task,
                description=f"epoch {info.epoch:.2f}",
                completed=info.step,
                total=info.total,
                rest=rest,
            )
        else:
            self._console.print(
                f"step {info.step}/{info.total}  epoch {info.epoch:.2f}  {rest}", highlight=False
            )

    def status(self, status: Status) -> None:
        """Takes what is known of a run in other processes."""
        self._began = True
        now = time.monotonic()
        value = status.last.get(self._monitor)
        if value == self._value and now - self._shown < (REFRESH_S if self._bar else LINE_S):
            return
        self._shown, self._value = now, value
        names = [name for name in ("train/loss", self._monitor) if name in status.last]
        rest = "  ".join(f"{name} {status.last[name]:.4f}" for name in names)
        epoch = f"epoch {status.epoch:.2f}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=epoch, completed=status.step, rest=rest)
        else:
            self._console.print(f"step {status.step}  {epoch}  {rest}", highlight=False)

    def interrupted(self) -> None:
        """Says how to go on with a run in other processes, once it has begun."""
        if self._began:
            self._console.print(GO_ON, highlight=False)

    def summary(self, result: RunResult) -> None:
        """Says how it ended, and what to do next."""
        out = Console(highlight=False)
        root = relative(result.root)
        out.print(f"{result.state}: {result.why}")
        if result.best:
            value, epoch = result.best["value"], result.best["epoch"]
            out.print(f"best {self._monitor} {value:.4f} at epoch {epoch:.2f}")
        if result.state == "interrupted":
            out.print(GO_ON)
        elif self._labels:
            out.print(f"test it with:  orch evaluate {root} --split test")
            out.print(f"serve it with: orch serve {root}")


def relative(path: Path) -> Path:
    """The path as a user would type it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
