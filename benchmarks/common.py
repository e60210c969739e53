"""What every benchmark shares: the machine it ran on, and two sides measured fairly."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Measures the sides in turn, so that what else the machine does hits all of them.

    Every other round has the opposite order. The first call of each side warms up and is not
    counted.

    Args:
        sides: by name, ours first; each call works once and returns its seconds.
        rounds: how often each side is measured.

    Returns:
        Seconds of each side (median, lowest, highest, and an interval that holds the true median
        with a probability of 95 %); and, for every side but the first, the same of its seconds
        divided by the first side's, round by round: above 1 the first is faster.
    """
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in reversed(sides) if number % 2 else sides:
            seconds[name].append(sides[name]())
    first, *others = sides
    ratios = {
        other: [theirs / ours for theirs, ours in zip(seconds[other], seconds[first], strict=True)]
        for other in others
    }
    return {
        "rounds": rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        f"times faster is {first}": {f"than {o}": spread(values) for o, values in ratios.items()},
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest, and the interval of `median_interval`; four digits each."""
    figures = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    return rounded | {"median in": [float(f"{value:.4g}") for value in median_interval(values)]}


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The two values between which, with a probability of 95 %, the true median lies.

    However the values are distributed, each is below it with probability 1/2; so the number that
    are is binomial, of mean n/2 and standard deviation √n/2. Fewer than six can't give 95 %: then
    these are the lowest and the highest.
    """
    ordered, n = sorted(values), len(values)
    outside = max(0, int(n / 2 - 0.98 * math.sqrt(n)))
    return ordered[outside], ordered[n - 1 - outside]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
