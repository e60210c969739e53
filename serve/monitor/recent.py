"""The last requests of one version: how long each stage took, and how many there were."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

STAGES = ("receive", "decode", "queue", "compute", "total")
"""Receiving the body, decoding and checking it, waiting for a batch, computing it; all of it."""
_KEPT = 2048
_SECONDS = 300.0
_STEP = 5.0
"""Seconds of one bar of the chart."""
_BARS = 60


@dataclass
class _Bar:
    number: int = -1
    answered: int = 0
    failed: int = 0


class Recent:
    """A window over the last `_KEPT` answers of the last five minutes; memory is bounded."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, tuple[float, ...], int]] = deque(maxlen=_KEPT)
        self._bars = [_Bar() for _ in range(_BARS)]
        self.answered = 0
        """Since the version was first asked."""
        self.failed = 0

    def add(self, stages: tuple[float, ...], batch: int) -> None:
        """Notes an answer.

        Args:
            stages: seconds of each of `STAGES`; NaN where one does not apply.
            batch: samples in its forward pass.
        """
        now = time.monotonic()
        self._rows.append((now, stages, batch))
        self._bar(now).answered += 1
        self.answered += 1

    def fail(self) -> None:
        """Notes a request that the model gave no answer to."""
        self._bar(time.monotonic()).failed += 1
        self.failed += 1

    def _bar(self, now: float) -> _Bar:
        number = int(now / _STEP)
        bar = self._bars[number % _BARS]
        if bar.number != number:
            bar.number, bar.answered, bar.failed = number, 0, 0
        return bar

    def chart(self) -> list[dict[str, float]]:
        """Answers and failures a second in each five seconds of the last five minutes."""
        last = int(time.monotonic() / _STEP)
        bars = {bar.number: bar for bar in self._bars}
        shown = [bars.get(number, _Bar()) for number in range(last - _BARS + 1, last + 1)]
        return [{"answered": one.answered / _STEP, "failed": one.failed / _STEP} for one in shown]

    def rate(self, seconds: float = 30.0) -> float:
        """Answers a second, over the last whole five-second steps within `seconds`."""
        steps = max(1, int(seconds / _STEP))
        last = int(time.monotonic() / _STEP)
        counted = sum(one.answered for one in self._bars if last - steps <= one.number < last)
        return counted / (steps * _STEP)

    def summary(self) -> dict[str, Any]:
        """Percentiles of each stage in milliseconds, and of batch sizes; empty without answers."""
        oldest = time.monotonic() - _SECONDS
        rows = [row for row in self._rows if row[0] >= oldest]
        if not rows:
            return {"latency_ms": {}, "batch": None}
        seconds = np.array([row[1] for row in rows], np.float64)
        found = {}
        for place, stage in enumerate(STAGES):
            column = seconds[:, place]
            column = column[np.isfinite(column)]
            if len(column):
                p50, p95, p99 = np.percentile(column, (50, 95, 99)) * 1000
                found[stage] = {"p50": p50, "p95": p95, "p99": p99}
        sizes = np.array([row[2] for row in rows])
        batch = {"mean": sizes.mean(), "max": int(sizes.max()), "of": len(rows)}
        return {"latency_ms": found, "batch": batch}
