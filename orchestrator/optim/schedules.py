"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no state.

A schedule maps the number of the next optimizer step, from 0, to a factor on the optimizer's
learning rate. Builders take the section and the run's lengths in steps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from orchestrator.config import schedules
from orchestrator.config.base import build

Schedule = Callable[[int], float]


def build_schedule(
    config: schedules.SchedulePart, *, steps_per_epoch: int, total_steps: int
) -> Schedule:
    """The schedule that a file asks for, warm-up included.

    Returns:
        A function from the step (from 0) to a factor on the optimizer's learning rate.
    """
    warmup = min(config.warmup.steps(steps_per_epoch, total_steps), total_steps)
    lengths = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps, "warmup": warmup}
    schedule: Schedule = build("schedule", config, **lengths)
    if isinstance(config, schedules.OneCycle) or not warmup:
        return schedule

    def warmed_up(step: int) -> float:
        # (step + 1), so that the first step already learns (Goyal et al., 2017, section 2.2).
        return schedule(step) * min(1.0, (step + 1) / warmup)

    return warmed_up


def constant(
    config: schedules.Constant, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds the schedule that never changes."""
    return lambda step: 1.0


def cosine(
    config: schedules.Cosine, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds half a cosine over what follows the warm-up (SGDR, equation 5)."""

    def factor(step: int) -> float:
        t = _progress(step, warmup, total_steps)
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * t)) / 2

    return factor


def one_cycle(
    config: schedules.OneCycle, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds the two cosines of `torch.optim.lr_scheduler.OneCycleLR`."""
    peak = max(warmup - 1, 0)

    def factor(step: int) -> float:
        if step <= peak and peak:
            return _cosine_between(config.start, 1.0, step / peak)
        return _cosine_between(1.0, config.final, _progress(step, peak, total_steps - 1))

    return factor


def polynomial(
    config: schedules.Polynomial, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds the polynomial fall over what follows the warm-up."""

    def factor(step: int) -> float:
        t = _progress(step, warmup, total_steps)
        return float(config.final + (1 - config.final) * (1 - t) ** config.power)

    return factor


def exponential(
    config: schedules.Exponential, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds the exponential fall."""
    return lambda step: float(config.gamma ** (step / steps_per_epoch))


def step(
    config: schedules.StepSchedule, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds the staircase."""
    every = max(config.every.steps(steps_per_epoch, total_steps), 1)
    return lambda step: float(config.gamma ** (step // every))


def multistep(
    config: schedules.MultiStep, *, steps_per_epoch: int, total_steps: int, warmup: int
) -> Schedule:
    """Builds the staircase with its own milestones."""
    milestones = sorted(m.steps(steps_per_epoch, total_steps) for m in config.milestones)
    return lambda step: float(config.gamma ** bisect_right(milestones, step))


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is between `start` (0) and `end` (1)."""
    return min(max((step - start) / max(end - start, 1), 0.0), 1.0)


def _cosine_between(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
