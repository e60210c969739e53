"""Executors compared: by the numbers that they give, and by the time that they take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.serve.backend import Inputs, Probabilities
from orchestrator.serve.executors.base import Executor, free_memory
from orchestrator.serve.executors.samples import take

BATCHES = (1, 8, 32)
_ROUNDS = 9
_DUEL_SECONDS = 0.8
"""For both sides and all batches together; what is slower is measured fewer times."""
_SLOW = 0.5
"""Seconds of one forward pass beyond which larger batches are not measured."""
_HOPELESS = 0.7
"""Times as fast at two sizes, below which a challenger would have to be 2.4 times as fast at the
third one: that one is not measured."""
LARGEST_BATCH = 128
"""What `auto` tries at most."""
_FLAT = 1.02
"""Times the samples a second of the best smaller size; two sizes below it end the search."""
_NEAR = 0.95
PER_BATCH = 0.001
"""Seconds of a replica's process that a call from the gateway takes, whatever it carries."""


def largest_difference(executor: Executor, samples: Inputs, reference: Probabilities) -> float:
    """Of a probability, over `samples` in batches of several sizes; infinite for NaN.

    Args:
        reference: float32[B, classes], what the samples should give.
    """
    cuts = [(0, 1), (1, 6), (6, len(samples))]
    rows = np.concatenate(
        [executor.run(samples[start:end], None).probabilities for start, end in cuts]
    )
    difference = float(np.abs(rows - reference).max())
    return difference if math.isfinite(difference) else math.inf


def duel(first: Executor, second: Executor, samples: Inputs) -> tuple[Timing, Timing]:
    """Times two executors in turn; the larger sizes only as long as the first one may still win.

    Returns:
        Median seconds by batch size, of both.
    """
    seconds: tuple[Timing, Timing] = ({}, {})
    for size in BATCHES:
        inputs = take(samples, size)
        took = [seconds_of(one, inputs) for one in (first, second)]
        took = [seconds_of(one, inputs) for one in (first, second)]  # the first ones warm up
        rounds = int(_DUEL_SECONDS / len(BATCHES) / max(sum(took), 1e-6))
        pairs = [
            [seconds_of(one, inputs) for one in (first, second)]
            for _ in range(max(1, min(_ROUNDS, rounds)))
        ]
        for side, found in zip(seconds, zip(*pairs, strict=True), strict=True):
            side[size] = statistics.median(found)
        if max(took) > _SLOW or _hopeless(*seconds):
            break
    return seconds


def _hopeless(ours: Timing, theirs: Timing) -> bool:
    slow = [theirs[size] / ours[size] < _HOPELESS for size in ours]
    return len(slow) > 1 and all(slow)


Timing = dict[int, float]
"""Seconds of a forward pass by the number of samples."""


def times_faster(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """The geometric mean, over batch sizes, of their seconds divided by ours."""
    shared = ours.keys() & theirs.keys()
    return math.exp(statistics.mean(math.log(theirs[size] / ours[size]) for size in shared))


def seconds_of(executor: Executor, inputs: Inputs) -> float:
    """Of one run."""
    start = time.perf_counter()
    executor.run(inputs, None)
    return time.perf_counter() - start


def throughput(executor: Executor, samples: Inputs) -> Timing:
    """Seconds by batch size, in powers of two, until memory, patience or gain are at their end."""
    found: Timing = {}
    size = 1
    while size <= LARGEST_BATCH and not _flat(found):
        try:
            executor.run(take(samples, size), None)
            found[size] = statistics.median(
                seconds_of(executor, take(samples, size)) for _ in range(3)
            )
        except (MemoryError, RuntimeError) as error:
            if not found or "memory" not in f"{type(error).__name__} {error}".lower():
                raise
            free_memory()
            break
        if found[size] > _SLOW:
            break
        size *= 2
    return found


def _flat(seconds: Timing) -> bool:
    """Whether the two largest sizes brought nothing."""
    rates = [size / (took + PER_BATCH) for size, took in sorted(seconds.items())]
    return len(rates) > 2 and max(rates[-2:]) < _FLAT * max(rates[:-2])


def best_batch(seconds: Mapping[int, float], on_the_way: float = PER_BATCH) -> int:
    """The smallest batch whose samples a second are within 5 % of the best batch's.

    Args:
        seconds: of a forward pass, by batch size.
        on_the_way: seconds that a batch of any size takes to the replica and back.
    """
    rates = {size: size / (took + on_the_way) for size, took in seconds.items()}
    return min(size for size, rate in rates.items() if rate >= _NEAR * max(rates.values()))


def warm_up(executor: Executor, samples: Inputs, sizes: Sequence[int]) -> None:
    """Runs every size twice: engines prepare for a shape when they first meet it."""
    for size in sizes:
        for _ in range(2):
            executor.run(take(samples, size), None)
