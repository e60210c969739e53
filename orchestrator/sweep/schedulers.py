"""Schedulers: which trials are stopped early (pruned, in Optuna's word).

Targets are called as ``build(config, steps=Steps)`` and return an Optuna pruner. Resources are
optimizer steps, which is also what trials report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)

from orchestrator.config.base import Part, build
from orchestrator.config.duration import Duration, Interval
from orchestrator.config.pipeline import Asha, Hyperband, Median, NoScheduler


@dataclass(frozen=True)
class Steps:
    """A trial's lengths, in optimizer steps.

    Attributes:
        epoch: steps of one epoch.
        total: steps of the whole trial.
        evaluations: when it is evaluated.
    """

    epoch: int
    total: int
    evaluations: Interval

    def grace(self, duration: Duration) -> int:
        """What a trial gets before it is judged: the nearest whole number of evaluations.

        Rounded down, because rungs are multiples of it: one a single step behind an evaluation
        would be judged a whole interval late. n·⌊x⌋ <= n·x keeps every rung at its evaluation, or
        less than n steps before.
        """
        wanted = duration.interval(self.epoch, self.total).length
        number = max(1, round(wanted / self.evaluations.length))
        return min(math.floor(number * self.evaluations.length), self.total)


def build_scheduler(config: Part, steps: Steps) -> BasePruner:
    """Builds `sweep.scheduler`."""
    return build("scheduler", config, steps=steps)


def none(config: NoScheduler, *, steps: Steps) -> BasePruner:
    """Stops nothing."""
    return NopPruner()


def asha(config: Asha, *, steps: Steps) -> BasePruner:
    """Rungs at grace·reduction^k steps; at each, the best one in `reduction` go on.

    A trial is judged against those that reached the rung before it. While fewer than
    2·`reduction` have, only a new best goes on; the first one always does, and so do equals of
    one that goes on.
    """
    return SuccessiveHalvingPruner(
        min_resource=steps.grace(config.grace), reduction_factor=config.reduction
    )


def median(config: Median, *, steps: Steps) -> BasePruner:
    """Stops a trial whose best value so far is worse than the median of finished trials' there."""
    return MedianPruner(
        n_startup_trials=config.startup_trials, n_warmup_steps=steps.grace(config.grace)
    )


def hyperband(config: Hyperband, *, steps: Steps) -> BasePruner:
    """Brackets of successive halving whose first rungs lie at grace·reduction^s steps."""
    return HyperbandPruner(
        min_resource=steps.grace(config.grace),
        max_resource=steps.total,
        reduction_factor=config.reduction,
    )
