"""The host that needs no cluster: everything runs in this process, one piece after another."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from orchestrator.errors import OrchError, ResourceError
from orchestrator.host import Pending, Resources, SingleWorker, TrialJob, TrialStream

T = TypeVar("T")
_ENDINGS = frozenset({signal.SIGINT, signal.SIGTERM})


@dataclass(frozen=True)
class Finished:
    """Work that ended before it was asked for."""

    value: Any = None
    error: Exception | None = None

    def done(self) -> bool:
        """Always."""
        return True

    def result(self) -> Any:
        """What the work returned, or raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.value

    def cancel(self) -> None:
        """Nothing is left to end."""


class InProcessHost:
    """Runs stages and trials in this process, on one device.

    Args:
        device: what every worker computes on.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._worker = SingleWorker(device)

    def capacity(self, resources: Resources) -> int:
        """One.

        Raises:
            ResourceError: for more than one worker, or for GPUs that this process does not use.
        """
        if resources.workers > 1:
            raise ResourceError(
                f"scale.workers={resources.workers}, but one process has one worker; "
                "use scale.workers=1, or a Ray cluster"
            )
        if resources.gpus > 0 and self._worker.device.type == "cpu":
            raise ResourceError(
                f"scale.gpus={resources.gpus:g}, but this process computes on the CPU; "
                "use scale.gpus=0, or a machine with a GPU"
            )
        return 1

    def submit(
        self, call: Callable[..., Any], arguments: Mapping[str, Any], resources: Resources
    ) -> Pending:
        """Runs ``call(worker=…, **arguments)`` at once and keeps its result or its exception."""
        self.capacity(resources)
        try:
            return Finished(call(worker=self._worker, **arguments))
        except Exception as error:
            return Finished(error=error)

    def run_trials(self, trials: TrialStream, resources: Resources, concurrency: int) -> None:
        """Runs trials one after another, whatever `concurrency` allows.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, also when the running trial ended in order
                because of it. That trial is not told to the stream as finished.
        """
        self.capacity(resources)
        with _interrupts() as interrupted:
            while (job := trials.next()) is not None:
                error = self._run(job, trials)
                if interrupted():
                    raise KeyboardInterrupt
                trials.finished(job.id, error)

    def close(self) -> None:
        """Nothing was started."""

    def _run(self, job: TrialJob, trials: TrialStream) -> str | None:
        # Only the trial's own code is guarded: a fault of the stream is not the trial's.
        reports, error = _attempt(lambda: job.call(worker=self._worker, **job.arguments))
        while reports is not None and error is None:
            report, error = _attempt(lambda: next(reports, None))
            if report is None:
                break
            if trials.report(job.id, report):
                _, error = _attempt(getattr(reports, "close", lambda: None))
                break
        return error


def _attempt(call: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return call(), None
    except OrchError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C or SIGTERM came, also when a trial took the signal for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield lambda: not _ENDINGS.isdisjoint(_drain(reader))
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _drain(reader: int) -> bytes:
    try:
        return os.read(reader, 4096)
    except BlockingIOError:
        return b""
