"""Whether `torch.compile` pays for a run: tried once on a throw-away copy, and measured.

Compiling takes a minute or more, so it is tried only for runs that are long enough, and kept only
where it saves more than it costs and gives the gradients that the plain network gives.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.data.types import GlobalBatch
from orchestrator.engine.plain import PlainEngine
from orchestrator.tasks.base import Task

LONG_SECONDS = 1800.0
"""Training shorter than this is not worth the attempt."""
FEWEST_STEPS = 200
"""In fewer steps hardly anything can be saved, so not even a step is measured."""
GAIN = 0.97
"""Share of the plain step's time that a compiled one may take at most."""
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""Largest ‖g − g′‖ / ‖g‖ between the gradients of both, over all parameters together."""


@dataclass(frozen=True)
class Trial:
    """What the attempt showed.

    Attributes:
        plain, compiled: median seconds of a step; NaN where it was not run.
        spent: seconds that compiling took.
        deviation: ‖g − g′‖ / ‖g‖.
        kept: whether the run is compiled.
        why: in words, for the log.
    """

    plain: float
    compiled: float = math.nan
    spent: float = math.nan
    deviation: float = math.nan
    kept: bool = False
    why: str = ""

    def __str__(self) -> str:
        return f"torch.compile is {'used' if self.kept else 'not used'}: {self.why}"


def try_compiling(
    make: Callable[[bool], PlainEngine],
    task: Task,
    batches: Sequence[GlobalBatch],
    lr: float,
    *,
    precision: str,
    steps: int,
    long_seconds: float = LONG_SECONDS,
) -> Trial:
    """Measures a network with and without `torch.compile`.

    Args:
        make: builds an engine around a copy of the network, the same each time; compiled if True.
        batches: of the training set; the first two warm up.
        lr: small enough that no step diverges.
        precision: fp32, bf16 or fp16.
        steps: of the run.
        long_seconds: how long the run must take for an attempt.
    """
    plain = make(False)
    # The first step allocates, so it takes longer than those that follow.
    seconds = _seconds(plain, task, batches[:1], lr)
    if seconds * steps < long_seconds:
        plain.close()
        return Trial(seconds, why=f"training takes less than {seconds * steps:.0f} s")
    seconds = _seconds(plain, task, batches, lr)
    plain.close()
    try:
        compiled = make(True)
        began = time.perf_counter()
        deviation = _deviation(compiled, make(False), task, batches[0])
        spent = time.perf_counter() - began
        faster = _seconds(compiled, task, batches, lr)
        compiled.close()
    except Exception as error:
        # Compilers fail in many ways, and the plain network trains all the same.
        return Trial(seconds, why=f"compiling failed ({type(error).__name__})")
    return _judge(Trial(seconds, faster, spent, deviation), TOLERANCE[precision], steps)


def _judge(trial: Trial, tolerance: float, steps: int) -> Trial:
    saved = (trial.plain - trial.compiled) * steps
    if not trial.deviation <= tolerance:
        kept, why = False, f"its gradients differ by {trial.deviation:.2g} of their length"
    elif trial.compiled > GAIN * trial.plain or saved <= trial.spent:
        kept, why = False, "it saves less than it costs"
    else:
        kept, why = True, f"it saves about {saved - trial.spent:.0f} s"
    figures = (
        f"{trial.compiled * 1000:.0f} ms a step, compiled in {trial.spent:.0f} s, against "
        f"{trial.plain * 1000:.0f} ms"
    )
    return Trial(
        trial.plain, trial.compiled, trial.spent, trial.deviation, kept, f"{why}: {figures}"
    )


def _seconds(engine: PlainEngine, task: Task, batches: Sequence[GlobalBatch], lr: float) -> float:
    taken = []
    for batch in batches:
        began = time.perf_counter()
        float(engine.train_step(task, batch, lr).loss)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:] or taken)


def _deviation(compiled: PlainEngine, plain: PlainEngine, task: Task, batch: GlobalBatch) -> float:
    """‖g − g′‖ / ‖g‖ of the batch's gradients, from the same weights and random numbers."""
    theirs, ours = compiled.gradients(task, batch), plain.gradients(task, batch)
    plain.close()
    difference = _norm([a - b for a, b in zip(theirs, ours, strict=True)])
    return difference / max(_norm(ours), torch.finfo(torch.float32).tiny)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(nn.utils.get_total_norm([one.float() for one in tensors]))
