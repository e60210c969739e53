"""Sections of what follows a single run: sweep, ensemble, distill."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Config, OneOf, Part, Seq, part
from orchestrator.config.duration import Duration
from orchestrator.config.numbers import Positive
from orchestrator.config.training import KlDivergence, TeacherSees

_SPACE = "orchestrator.sweep.space"
_SAMPLERS = "orchestrator.sweep.samplers"
_SCHEDULERS = "orchestrator.sweep.schedulers"
_METHODS = "orchestrator.ensemble"


# --- search space --------------------------------------------------------------------------


class _Range(Part):
    """What every range of numbers has."""

    @model_validator(mode="after")
    def _low_below_high(self) -> _Range:
        low, high = self.low, self.high  # type: ignore[attr-defined]
        if not low < high:
            raise ValueError(f"low < high must hold, but got (low={low}, high={high})")
        return self


@part("distribution", "uniform", build=f"{_SPACE}:uniform")
class Uniform(_Range):
    """A number between low and high."""

    type: Literal["uniform"] = "uniform"
    low: float
    high: float


@part("distribution", "log_uniform", build=f"{_SPACE}:log_uniform")
class LogUniform(_Range):
    """A number whose logarithm is uniform between those of low and high."""

    type: Literal["log_uniform"] = "log_uniform"
    low: Annotated[float, Field(gt=0)]
    high: Annotated[float, Field(gt=0)]


@part("distribution", "int_uniform", build=f"{_SPACE}:int_uniform")
class IntUniform(_Range):
    """A whole number from low to high, both included."""

    type: Literal["int_uniform"] = "int_uniform"
    low: int
    high: int
    step: Positive = 1


@part("distribution", "choice", build=f"{_SPACE}:choice")
class Choice(Part):
    """One of a list of values."""

    type: Literal["choice"] = "choice"
    values: Annotated[Seq[Any], Field(min_length=1)]

    @model_validator(mode="after")
    def _values_differ(self) -> Choice:
        texts = [json.dumps(value, sort_keys=True, default=str) for value in self.values]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise ValueError(f"each value must be there once, but {twice} is there twice")
        return self


# --- sampler and scheduler -----------------------------------------------------------------


@part("sampler", "tpe", build=f"{_SAMPLERS}:tpe")
class Tpe(Part):
    """Tree-structured Parzen estimator (Bergstra et al., 2011)."""

    type: Literal["tpe"] = "tpe"
    startup_trials: Annotated[int, Field(ge=0)] = 10
    """Random trials before the estimator starts."""


@part("sampler", "random", build=f"{_SAMPLERS}:random")
class Random(Part):
    """Independent draws."""

    type: Literal["random"] = "random"


@part("sampler", "grid", build=f"{_SAMPLERS}:grid")
class Grid(Part):
    """Every combination of `choice` values and of `int_uniform` ranges, once."""

    type: Literal["grid"] = "grid"


@part("sampler", "cmaes", build=f"{_SAMPLERS}:cmaes")
class CmaEs(Part):
    """Covariance matrix adaptation (Hansen, 2016); for numbers, not choices."""

    type: Literal["cmaes"] = "cmaes"


@part("scheduler", "none", build=f"{_SCHEDULERS}:none")
class NoScheduler(Part):
    """Every trial runs to its end."""

    type: Literal["none"] = "none"


@part("scheduler", "asha", build=f"{_SCHEDULERS}:asha")
class Asha(Part):
    """Asynchronous successive halving (Li et al., 2020)."""

    type: Literal["asha"] = "asha"
    grace: Duration = Duration(1, "epochs")
    """What every trial gets before it can be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """One in this many goes on at each rung."""


@part("scheduler", "median", build=f"{_SCHEDULERS}:median")
class Median(Part):
    """Stops what is worse than the median of earlier trials at the same step (Golovin, 2017)."""

    type: Literal["median"] = "median"
    grace: Duration = Duration(1, "epochs")
    startup_trials: Positive = 5


@part("scheduler", "hyperband", build=f"{_SCHEDULERS}:hyperband")
class Hyperband(Part):
    """Several brackets of successive halving (Li et al., 2018)."""

    type: Literal["hyperband"] = "hyperband"
    grace: Duration = Duration(1, "epochs")
    reduction: Annotated[int, Field(ge=2)] = 3


def _count(distribution: Part) -> int | None:
    """How many values a distribution has, where that is known."""
    if isinstance(distribution, Choice):
        return len(distribution.values)
    if isinstance(distribution, IntUniform):
        return (distribution.high - distribution.low) // distribution.step + 1
    return None


class SweepConfig(Config):
    """A search: how many trials, over what, chosen and stopped by whom."""

    trials: Positive
    space: Annotated[dict[str, Annotated[Part, OneOf("distribution")]], Field(min_length=1)]
    """Dotted keys of this file, each with a distribution."""
    sampler: Annotated[Part, OneOf("sampler")] = Tpe()
    scheduler: Annotated[Part, OneOf("scheduler")] = NoScheduler()
    concurrency: Literal["auto"] | Positive = "auto"
    """Trials at once; `auto` is what the machine or the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often one trial is started again after its worker died."""

    @model_validator(mode="after")
    def _sampler_fits_space(self) -> SweepConfig:
        if isinstance(self.sampler, Grid):
            self._check_grid()
        if isinstance(self.sampler, CmaEs):
            choices = [key for key, one in self.space.items() if isinstance(one, Choice)]
            if choices or len(self.space) < 2:
                raise ValueError(
                    "cmaes needs a space of two or more ranges and no choices, but got "
                    f"{len(self.space)} keys, with choices for {choices}; use tpe"
                )
        return self

    def _check_grid(self) -> None:
        for key, one in self.space.items():
            if isinstance(one, Uniform | LogUniform):
                raise ValueError(
                    f"a grid needs values that can be counted, but {key} is {one.type}; "
                    "write it as {type: choice, values: […]}, or use another sampler"
                )
        counts = [_count(one) for one in self.space.values()]
        if None not in counts and self.trials < (size := math.prod(filter(None, counts))):
            raise ValueError(
                f"the grid has {size} combinations, but trials={self.trials} would leave some "
                f"out; set trials: {size}, or use another sampler"
            )


# --- ensemble, distill, serve --------------------------------------------------------------


@part("ensemble", "average", build=f"{_METHODS}.average:select")
class AverageEnsemble(Part):
    """The `size` best on the select split, with equal weights."""

    type: Literal["average"] = "average"


@part("ensemble", "greedy", build=f"{_METHODS}.greedy:select")
class GreedyEnsemble(Part):
    """Forward selection with replacement on the select split (Caruana et al., 2004)."""

    type: Literal["greedy"] = "greedy"
    start: Positive = 1
    """Best models that the selection starts from."""
    metric: Literal["accuracy", "nll"] = "nll"


class EnsembleConfig(Config):
    """Which trained models answer together."""

    method: Annotated[Part, OneOf("ensemble")] = GreedyEnsemble()
    size: Positive = 5
    """Members at most; under greedy selection, rounds."""
    combine: Literal["probabilities", "logits"] = "probabilities"


class DistillConfig(Config):
    """A student: this file with `set` applied and the task replaced by distillation."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted overrides, such as `model.width: 0.35`."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    teacher_sees: TeacherSees = "augmented"
    soft_loss: Annotated[Part, OneOf("soft_loss")] = KlDivergence()
    baseline: bool = True
    """Also train the student without a teacher, for the comparison."""
