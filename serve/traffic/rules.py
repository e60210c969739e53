"""The rules of `serve.traffic`, built from their sections.

A rule holds no state of its own: what is learnt arrives with the operator's table, so that every
gateway decides alike.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.serving import Bandit, Canary, Latest, Weighted
from orchestrator.serve.traffic.rule import Rule
from orchestrator.serve.traffic.sampling import Posterior, best_shares, draw_best


class LatestRule:
    """The version that was added last answers."""

    def __init__(self, config: Latest) -> None:
        self._shadows = config.shadows

    def choose(self, sticky: str, versions: Sequence[str]) -> str:
        """See `Rule.choose`."""
        return _newest(versions, self._shadows)

    def shadows(self, chosen: str, versions: Sequence[str]) -> Sequence[str]:
        """See `Rule.shadows`."""
        return _copied_to(self._shadows, chosen, versions)

    def shares(self, versions: Sequence[str]) -> dict[str, float]:
        """See `Rule.shares`."""
        chosen = self.choose("", versions)
        return {one: float(one == chosen) for one in versions}


class WeightedRule:
    """Versions answer in proportion to weights; the same client gets the same version.

    Args:
        weights: by version, not negative; scaled to those that are ready.
        shadows: versions that get copies.
        sticky: whether clients keep their version.
        name: the model's, so that the groups of two models' clients are independent.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        shadows: Sequence[str] = (),
        sticky: bool = True,
        name: str = "",
    ) -> None:
        self._weights = {version: weight for version, weight in weights.items() if weight > 0}
        self._shadows, self._sticky, self._name = shadows, sticky, name

    def choose(self, sticky: str, versions: Sequence[str]) -> str:
        """See `Rule.choose`."""
        there = [one for one in versions if one in self._weights]
        if not there:
            return _newest(versions, self._shadows)
        if sticky and self._sticky:
            return max(there, key=lambda one: self._score(sticky, one))
        return random.choices(there, [self._weights[one] for one in there])[0]

    def _score(self, client: str, version: str) -> float:
        """The client's score of a version: the highest one wins (weighted rendezvous hashing).

        For u uniform in (0, 1), -ln u / w is exponential with rate w, and the smallest of several
        such is version i's with probability w_i / Σw. When a weight grows, clients move only to
        that version. Thaler & Ravishankar 1998; with weights, Schindelhauer & Schomaker 2005.
        """
        return math.log(uniform(self._name, client, version)) / self._weights[version]

    def shadows(self, chosen: str, versions: Sequence[str]) -> Sequence[str]:
        """See `Rule.shadows`."""
        return _copied_to(self._shadows, chosen, versions)

    def shares(self, versions: Sequence[str]) -> dict[str, float]:
        """See `Rule.shares`."""
        whole = sum(self._weights.get(one, 0.0) for one in versions)
        if not whole:
            chosen = _newest(versions, self._shadows)
            return {one: float(one == chosen) for one in versions}
        return {one: self._weights.get(one, 0.0) / whole for one in versions}


class BanditRule:
    """Thompson sampling: a version answers as often as it is likely to be the best one.

    Args:
        config: versions and share of even draws.
        posteriors: (alpha, beta) of each version's mean reward.
        name: see `WeightedRule`.
    """

    def __init__(self, config: Bandit, posteriors: Mapping[str, Posterior], name: str = "") -> None:
        self._config, self._name = config, name
        self._posteriors = {one: posteriors.get(one, (1.0, 1.0)) for one in config.versions}
        self._shares: tuple[tuple[str, ...], dict[str, float]] | None = None

    def choose(self, sticky: str, versions: Sequence[str]) -> str:
        """See `Rule.choose`.

        A client's draws come from its name: its version changes only as the posteriors do.
        """
        there = self._there(versions)
        if not there:
            return _newest(versions, self._config.shadows)
        if sticky and self._config.sticky:
            draws = {one: uniform(self._name, sticky, one) for one in there}
            explore = uniform(self._name, sticky, "", "explore")
        else:
            draws = {one: random.random() for one in there}
            explore = random.random()
        if explore < self._config.explore:
            # The draws are uniform, so that the version of the largest is too.
            return max(draws, key=lambda one: draws[one])
        return draw_best({one: self._posteriors[one] for one in there}, draws)

    def shadows(self, chosen: str, versions: Sequence[str]) -> Sequence[str]:
        """See `Rule.shadows`."""
        return _copied_to(self._config.shadows, chosen, versions)

    def shares(self, versions: Sequence[str]) -> dict[str, float]:
        """See `Rule.shares`."""
        there = self._there(versions)
        if not there:
            chosen = _newest(versions, self._config.shadows)
            return {one: float(one == chosen) for one in versions}
        if self._shares is None or self._shares[0] != there:
            self._shares = there, best_shares({one: self._posteriors[one] for one in there})
        even, best = self._config.explore / len(there), self._shares[1]
        greedy = 1 - self._config.explore
        return {one: even + greedy * best[one] if one in best else 0.0 for one in versions}

    def _there(self, versions: Sequence[str]) -> tuple[str, ...]:
        return tuple(one for one in versions if one in self._posteriors)


def uniform(*texts: str) -> float:
    """A number in (0, 1) that is the same in every process, machine and release for these texts."""
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest()
    # 52 bits and a half step: a float holds that, and neither end is reached.
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52


def _newest(versions: Sequence[str], shadows: Sequence[str]) -> str:
    candidates = [one for one in versions if one not in shadows]
    return (candidates or list(versions))[-1]


def _copied_to(shadows: Sequence[str], chosen: str, versions: Sequence[str]) -> list[str]:
    return [one for one in versions if one in shadows and one != chosen]


# --- from sections -------------------------------------------------------------------------


def latest(config: Latest, *, state: Mapping[str, Any], name: str) -> Rule:
    """Builds `traffic: {type: latest}`."""
    return LatestRule(config)


def weighted(config: Weighted, *, state: Mapping[str, Any], name: str) -> Rule:
    """Builds `traffic: {type: weighted}`."""
    return WeightedRule(config.weights, config.shadows, config.sticky, name)


def canary(config: Canary, *, state: Mapping[str, Any], name: str) -> Rule:
    """Builds `traffic: {type: canary}`; its judge says how large the share is."""
    share = float(state.get("share", 0.0))
    weights = {config.stable: 1 - share, config.canary: share}
    return WeightedRule(weights, config.shadows, config.sticky, name)


def bandit(config: Bandit, *, state: Mapping[str, Any], name: str) -> Rule:
    """Builds `traffic: {type: bandit}`; its judge says what was learnt."""
    learnt = state.get("posteriors", {})
    return BanditRule(config, {one: (float(a), float(b)) for one, (a, b) in learnt.items()}, name)
