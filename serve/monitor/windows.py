"""Windows of requests that are compared with the reference, described in a thread of their own."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.data.descriptors import Descriptors, image_descriptors, joined, text_descriptors
from orchestrator.run_folder.statistics import CONFIDENCE, Statistics
from orchestrator.serve.backend import Inputs, Probabilities
from orchestrator.serve.monitor.drift import Shift, State, compare, worst

WINDOW = 256
"""Samples of one window. Each is in one window only, so that windows are independent."""
_SECONDS, _LEAST = 600.0, 64
"""With less traffic a window ends after this long, if it has so many samples."""
_PER_SECOND, _BURST = 32.0, 64.0
"""Samples that are described of each version; of the rest nothing is kept."""
_PER_REQUEST = 8
_WAITING = 128
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What one whole window showed.

    Attributes:
        samples: that were compared.
        at: seconds since 1970.
        shifts: by descriptor, the largest first.
    """

    samples: int
    at: float
    shifts: Sequence[Shift]

    @property
    def state(self) -> State:
        """See `worst`."""
        return worst(self.shifts)


@dataclass(frozen=True)
class Sample:
    """Some of a request's inputs and answers, copied."""

    inputs: Inputs
    probabilities: Probabilities


class Window:
    """One version's samples since its last verdict. One thread's, but for what is read.

    Args:
        reference: what they are compared with.
    """

    def __init__(self, reference: Statistics) -> None:
        self._reference = reference
        self._parts: list[Descriptors] = []
        self._predicted = np.zeros(len(reference.predicted), np.int64)
        self._since = time.monotonic()
        self.samples = 0
        """Of the window that is not whole yet."""
        self.verdict: Verdict | None = None
        self.windows = 0
        self.alarms = 0

    def add(self, descriptors: Descriptors, probabilities: Probabilities) -> None:
        """Takes samples in; judges the window once it is whole.

        Args:
            descriptors: of n inputs.
            probabilities: float32[n, K], the answers to them.
        """
        classes = len(self._predicted)
        self._parts.append({**descriptors, CONFIDENCE: probabilities.max(1)})
        self._predicted += np.bincount(probabilities.argmax(1), minlength=classes)[:classes]
        self.samples += len(probabilities)
        old = time.monotonic() - self._since > _SECONDS and self.samples >= _LEAST
        if self.samples >= WINDOW or old:
            self._judge()

    def _judge(self) -> None:
        shifts = compare(self._reference, joined(self._parts), self._predicted)
        self.verdict = Verdict(self.samples, time.time(), shifts)
        self.windows += 1
        self.alarms += self.verdict.state != "none"
        self._parts, self.samples = [], 0
        self._predicted = np.zeros_like(self._predicted)
        self._since = time.monotonic()


class Budget:
    """So many samples a second, so that watching costs the same whatever the traffic."""

    def __init__(self) -> None:
        self._left, self._at = _BURST, time.monotonic()

    def take(self, wanted: int) -> int:
        """How many of the wanted ones there is budget for."""
        now = time.monotonic()
        self._left = min(_BURST, self._left + (now - self._at) * _PER_SECOND)
        self._at = now
        taken = min(wanted, _PER_REQUEST, int(self._left))
        self._left -= taken
        return taken


def sample(inputs: Inputs, probabilities: Probabilities, count: int) -> Sample:
    """Copies `count` of a request's rows, evenly spaced."""
    rows = np.linspace(0, len(inputs) - 1, count).astype(int)
    chosen = inputs[rows] if isinstance(inputs, np.ndarray) else [inputs[row] for row in rows]
    return Sample(chosen, probabilities[rows])


class Describer:
    """The thread that describes samples, beside the event loop; it starts with the first one."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Window, Statistics, Sample] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def put(self, window: Window, reference: Statistics, one: Sample) -> None:
        """Hands a sample over; when too many wait it is left out."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="orch-drift", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((window, reference, one))
        except queue.Full:
            return

    def wait(self) -> None:
        """Returns once all that was handed over is described."""
        self._queue.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            window, reference, one = item
            try:
                window.add(_described(one.inputs, reference), one.probabilities)
            except Exception:
                _LOG.exception("a sample could not be compared with the training data")
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def close(self) -> None:
        """Ends the thread once it has described what it has."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=5)
                self._thread.join(5)
            self._thread = None


def _described(inputs: Inputs, reference: Statistics) -> Descriptors:
    if isinstance(inputs, np.ndarray):
        return image_descriptors(inputs)
    if reference.tokenizer is None:
        return {}
    return text_descriptors(
        reference.tokenizer, [str(text) for text in inputs], reference.text_length
    )
