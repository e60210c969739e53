"""The search space: each dotted key of the file with what Optuna draws its value from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from orchestrator.config.base import Part, build
from orchestrator.config.pipeline import Choice, IntUniform, LogUniform, Uniform


@dataclass(frozen=True)
class Dimension:
    """One key's distribution.

    Attributes:
        distribution: what Optuna stores and samples.
        values: the user's values behind a categorical distribution's choices, in their order.
            Optuna keeps only scalars, so lists and mappings are stored as JSON text.
    """

    distribution: BaseDistribution
    values: tuple[Any, ...] = ()

    def suggest(self, trial: Trial, key: str) -> Any:
        """The trial's value for `key`, in the user's terms; the same one on every call."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return self.values[found.choices.index(trial.suggest_categorical(key, found.choices))]
        if isinstance(found, IntDistribution):
            return trial.suggest_int(key, found.low, found.high, step=found.step, log=found.log)
        return trial.suggest_float(key, found.low, found.high, step=found.step, log=found.log)

    def grid(self) -> list[Any] | None:
        """Every value, in Optuna's terms, or None where they can't be counted."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return list(found.choices)
        if isinstance(found, IntDistribution):
            return list(range(found.low, found.high + 1, found.step))
        return None


Space = Mapping[str, Dimension]


def build_space(space: Mapping[str, Part]) -> dict[str, Dimension]:
    """Builds each distribution of `sweep.space`; targets are called as ``build(config)``."""
    return {key: build("distribution", config) for key, config in space.items()}


def uniform(config: Uniform) -> Dimension:
    """Between low and high."""
    return Dimension(FloatDistribution(config.low, config.high))


def log_uniform(config: LogUniform) -> Dimension:
    """Between low and high, with a uniform logarithm."""
    return Dimension(FloatDistribution(config.low, config.high, log=True))


def int_uniform(config: IntUniform) -> Dimension:
    """From low to high in steps; the last one may lie below high."""
    last = config.low + (config.high - config.low) // config.step * config.step
    return Dimension(IntDistribution(config.low, last, step=config.step))


def choice(config: Choice) -> Dimension:
    """One of the values."""
    values = tuple(config.values)
    plain = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    # Python, and so Optuna, holds 1, 1.0 and true for the same choice.
    if plain and len(set(values)) == len(values):
        return Dimension(CategoricalDistribution(values), values)
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return Dimension(CategoricalDistribution(texts), values)
