"""Sections that say how the learning rate changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Part, Seq, part
from orchestrator.config.duration import Duration

_SCHEDULES = "orchestrator.optim.schedules"
NO_WARMUP = Duration(0, "steps")


class SchedulePart(Part):
    """What every schedule has."""

    warmup: Duration = NO_WARMUP
    """Linear rise of the learning rate from zero before the schedule proper."""


@part("schedule", "constant", build=f"{_SCHEDULES}:constant")
class Constant(SchedulePart):
    """The same learning rate throughout."""

    type: Literal["constant"] = "constant"


@part("schedule", "cosine", build=f"{_SCHEDULES}:cosine")
class Cosine(SchedulePart):
    """Half a cosine from the optimizer's rate to `final` times it (Loshchilov, Hutter, 2017)."""

    type: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0


@part("schedule", "one_cycle", build=f"{_SCHEDULES}:one_cycle")
class OneCycle(SchedulePart):
    """Cosine up to the optimizer's rate during `warmup`, cosine down after (Smith, 2018)."""

    type: Literal["one_cycle"] = "one_cycle"
    warmup: Duration = Duration(30, "%")
    start: Annotated[float, Field(gt=0, le=1)] = 0.04
    """First rate, as a share of the highest."""
    final: Annotated[float, Field(ge=0, le=1)] = 4e-6
    """Last rate, as a share of the highest."""


@part("schedule", "polynomial", build=f"{_SCHEDULES}:polynomial")
class Polynomial(SchedulePart):
    """Falls as (1 − t)^power to `final` times the optimizer's rate; power 1 is linear."""

    type: Literal["polynomial"] = "polynomial"
    power: Annotated[float, Field(gt=0)] = 1
    final: Annotated[float, Field(ge=0, le=1)] = 0


@part("schedule", "exponential", build=f"{_SCHEDULES}:exponential")
class Exponential(SchedulePart):
    """Multiplies the rate by `gamma` once an epoch, smoothly."""

    type: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95


@part("schedule", "step", build=f"{_SCHEDULES}:step")
class StepSchedule(SchedulePart):
    """Multiplies the rate by `gamma` after each `every`."""

    type: Literal["step"] = "step"
    every: Duration = Duration(30, "epochs")
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


@part("schedule", "multistep", build=f"{_SCHEDULES}:multistep")
class MultiStep(SchedulePart):
    """Multiplies the rate by `gamma` at each milestone."""

    type: Literal["multistep"] = "multistep"
    milestones: Seq[Duration]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
