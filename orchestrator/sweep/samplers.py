"""Samplers: who chooses the next trial's parameters.

Targets are called as ``build(config, space=…, seed=…)`` and return an Optuna sampler. The planner
builds a fresh one for every trial, seeded by the trial's number, so that a sweep that was
interrupted goes on with the draws that it would have made.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler

from orchestrator.config.base import Part, build
from orchestrator.config.pipeline import CmaEs, Grid, Random, Tpe
from orchestrator.errors import ConfigError
from orchestrator.sweep.space import Space


def build_sampler(config: Part, space: Space, seed: int) -> BaseSampler:
    """Builds `sweep.sampler`. `seed` is reduced to the 32 bits that numpy's generators take."""
    return build("sampler", config, space=space, seed=seed % 2**32)


def tpe(config: Tpe, *, space: Space, seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator, over all dimensions together.

    Trials that still run count as bad ones (a constant liar), so that trials that start at the
    same time do not all land in the same place.
    """
    return TPESampler(
        n_startup_trials=config.startup_trials, multivariate=True, constant_liar=True, seed=seed
    )


def random(config: Random, *, space: Space, seed: int) -> BaseSampler:
    """Independent draws."""
    return RandomSampler(seed=seed)


def cmaes(config: CmaEs, *, space: Space, seed: int) -> BaseSampler:
    """Covariance matrix adaptation over two or more ranges of numbers."""
    return CmaEsSampler(seed=seed)


def grid(config: Grid, *, space: Space, seed: int) -> BaseSampler:
    """Every combination once: trial number n gets the n-th, the last key (by name) varying fastest.

    Raises:
        ConfigError: if a key's values can't be counted.
    """
    return GridSampler(space)


def grid_size(space: Space) -> int:
    """How many combinations a grid has.

    Raises:
        ConfigError: if a key's values can't be counted.
    """
    return math.prod(len(values) for values in _axes(space).values())


class GridSampler(BaseSampler):  # type: ignore[misc]  # optuna's types are not followed
    """Trial number n gets the n-th point of the grid.

    Optuna's own stops `Study.optimize` when the grid is used up, which fails under ask and tell,
    and shuffles by its seed.
    """

    def __init__(self, space: Space) -> None:
        self._axes = _axes(space)
        self._size = grid_size(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: every key is looked up on its own."""
        return {}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of one key at this trial's point."""
        points = itertools.product(*self._axes.values())
        point = next(itertools.islice(points, trial.number % self._size, None))
        return point[list(self._axes).index(param_name)]


def _axes(space: Space) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for key, dimension in sorted(space.items()):
        values = dimension.grid()
        if values is None:
            raise ConfigError(
                f"sweep.space: a grid needs values that can be counted, but {key!r} is a range "
                "of real numbers; write it as {type: choice, values: […]} or use another sampler"
            )
        axes[key] = values
    return axes
