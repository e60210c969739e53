"""What happens every N steps: logging, evaluating, checkpointing, stopping."""

from __future__ import annotations

import math
import signal as signals
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from orchestrator.config.duration import Interval
from orchestrator.config.training import EarlyStoppingConfig
from orchestrator.errors import NonFiniteLossError
from orchestrator.evaluate import unreported
from orchestrator.loop import RunState, Signal, StepInfo
from orchestrator.tracking.base import Tracker


class _Hook:
    """A hook that answers alike on every rank and has nothing to remember."""

    scope: Literal["all", "rank"] = "all"

    def memory(self) -> dict[str, Any]:
        """See `Hook.memory`."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """See `Hook.remember`."""


class Every(_Hook):
    """Asks for a signal at every point of an interval, and at the last step."""

    def __init__(self, signal: Signal, interval: Interval) -> None:
        self._signal, self._interval = signal, interval

    def __call__(self, info: StepInfo, run: RunState) -> Signal:
        """See `Hook`."""
        if info.evaluation is not None:
            return Signal.NONE
        due = self._interval.meets(info.step) or info.step == run.total_steps
        return self._signal if due else Signal.NONE


class Log(_Hook):
    """Tells the tracker training loss, learning rate and speed, and stops on NaN.

    Reading the loss waits for the device, so it is read only when it is logged.

    Raises:
        NonFiniteLossError: if the loss, over all ranks, is NaN or infinite.
    """

    def __init__(self, tracker: Tracker, steps: int) -> None:
        self._tracker, self._steps = tracker, steps
        self._since, self._samples = time.perf_counter(), 0

    def __call__(self, info: StepInfo, run: RunState) -> Signal:
        """See `Hook`."""
        if info.evaluation is not None:
            self._tracker.log(info.step, info.evaluation.values, epoch=info.epoch)
            self._since, self._samples = time.perf_counter(), 0
            return Signal.NONE
        self._samples += info.samples
        if info.step % self._steps and info.step != run.total_steps:
            return Signal.NONE
        values = _means_over_ranks(info, run)
        if not math.isfinite(values["train/loss"]):
            raise NonFiniteLossError(
                f"the loss became {values['train/loss']} at step {info.step} "
                f"(learning rate {info.lr:.3g}); lower optimizer.lr, set train.clip_norm, "
                "or use train.precision=fp32"
            )
        now = time.perf_counter()
        values["train/lr"] = info.lr
        values["train/samples_per_second"] = self._samples / max(now - self._since, 1e-9)
        self._since, self._samples = now, 0
        self._tracker.log(info.step, values, epoch=info.epoch)
        return Signal.NONE


def _means_over_ranks(info: StepInfo, run: RunState) -> dict[str, float]:
    """The loss over all ranks; the task's further metrics are rank 0's."""
    total = run.worker.sum(info.loss.detach().float().clone())
    values = {"train/loss": float(total) / run.worker.world_size}
    return values | {f"train/{name}": float(value) for name, value in info.metrics.items()}


class KeepBest(_Hook):
    """Remembers the best evaluation of the monitored metric, and asks to save it.

    Raises:
        ConfigError: if an evaluation lacks that metric.
    """

    def __init__(self, monitor: str, mode: Literal["max", "min"], save: bool = True) -> None:
        self._monitor, self._mode, self._save = monitor, mode, save

    def __call__(self, info: StepInfo, run: RunState) -> Signal:
        """See `Hook`."""
        if info.evaluation is None:
            return Signal.NONE
        values = info.evaluation.values
        if self._monitor not in values:
            raise unreported(self._monitor, [name.partition("/")[2] for name in values])
        value = values[self._monitor]
        if not improves(value, run.best["value"] if run.best else None, self._mode):
            return Signal.NONE
        run.best = {
            "step": info.step,
            "epoch": info.epoch,
            "value": value,
            "metrics": dict(values),
        }
        return Signal.CHECKPOINT if self._save else Signal.NONE


def improves(
    value: float, best: float | None, mode: Literal["max", "min"], delta: float = 0
) -> bool:
    """Whether `value` beats `best` by more than `delta`; any number beats None, NaN nothing."""
    if best is None:
        return not math.isnan(value)
    return value > best + delta if mode == "max" else value < best - delta


class EarlyStopping(_Hook):
    """Stops after `patience` evaluations without an improvement of `min_delta` (Prechelt, 1998)."""

    def __init__(
        self, config: EarlyStoppingConfig, monitor: str, mode: Literal["max", "min"]
    ) -> None:
        self._config, self._monitor, self._mode = config, monitor, mode
        self._best: float | None = None
        self._waited = 0

    def __call__(self, info: StepInfo, run: RunState) -> Signal:
        """See `Hook`."""
        if info.evaluation is None:
            return Signal.NONE
        value = info.evaluation.values[self._monitor]
        if improves(value, self._best, self._mode, self._config.min_delta):
            self._best, self._waited = value, 0
            return Signal.NONE
        self._waited += 1
        if self._waited < self._config.patience:
            return Signal.NONE
        what = "was no number" if self._best is None else f"did not improve on {self._best:.6g}"
        run.stop_reason = f"{self._monitor} {what} in {self._waited} evaluations"
        return Signal.STOP | Signal.CHECKPOINT

    def memory(self) -> dict[str, Any]:
        """See `Hook.memory`."""
        return {"best": self._best, "waited": self._waited}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """See `Hook.remember`."""
        self._best, self._waited = memory["best"], memory["waited"]

    @property
    def due(self) -> bool:
        """Whether the run ends where it is, as a resumed one may."""
        return self._waited >= self._config.patience


class Interrupt(_Hook):
    """Turns Ctrl-C and SIGTERM into a checkpoint and an orderly end."""

    scope: Literal["all", "rank"] = "rank"

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, info: StepInfo, run: RunState) -> Signal:
        """See `Hook`."""
        if self.received is None:
            return Signal.NONE
        run.stop_reason = f"interrupted by {signals.Signals(self.received).name}"
        return Signal.STOP | Signal.CHECKPOINT

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the signals inside the block; a second Ctrl-C ends at once.

        Python allows handlers in the main thread only; elsewhere the block changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signals.SIGINT, signals.SIGTERM)
        before = {kind: signals.signal(kind, self._receive) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signals.signal(kind, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
