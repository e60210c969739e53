"""Thompson sampling on Beta posteriors (Thompson 1933; Chapelle & Li 2011)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import betainc, betaincinv

Posterior = tuple[float, float]
"""Alpha and beta of a mean reward's Beta distribution; (1, 1) is uniform: nothing is known."""
_POINTS = 512


def draw_best(posteriors: Mapping[str, Posterior], draws: Mapping[str, float]) -> str:
    """The version whose drawn mean reward is the highest.

    Args:
        posteriors: by version; at least one.
        draws: a uniform number in (0, 1) for each of them; the draw is its quantile.
    """
    drawn = {one: betaincinv(a, b, draws[one]) for one, (a, b) in posteriors.items()}
    return max(drawn, key=lambda one: float(drawn[one]))


def best_shares(posteriors: Mapping[str, Posterior]) -> dict[str, float]:
    """How likely each version is to be the best: P(i) = E[Π F_j(X_i)], over X_i's quantiles."""
    points = (np.arange(_POINTS) + 0.5) / _POINTS
    chances = {}
    for one, (a, b) in posteriors.items():
        values = betaincinv(a, b, points)
        others = [betainc(*posteriors[other], values) for other in posteriors if other != one]
        chances[one] = float(np.prod(others, axis=0).mean()) if others else 1.0
    whole = sum(chances.values())
    return {one: chance / whole for one, chance in chances.items()}
