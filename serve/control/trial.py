"""Whether a new version does harm, by counts that may be small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from scipy.special import betaincinv

_WIDTH = math.log(1.02)
"""A bucket of seconds spans 2 %: quantiles are right to that (DDSketch, Masson et al. 2019)."""
_NEVER = 10**6
"""The bucket of what was given up: longer than any answer took."""
_TAIL = 0.05


class Evidence:
    """How one version's requests went: how many failed, and how long the others took.

    One that was given up at its own deadline did not fail, but took longer than any answer.

    Args:
        failed: requests without an answer.
        seconds: answers by bucket of `_WIDTH`.
    """

    def __init__(self, failed: int = 0, seconds: Mapping[int, int] | None = None) -> None:
        self.failed, self._seconds = failed, Counter(seconds or {})

    @property
    def answered(self) -> int:
        """Requests that got an answer."""
        return self._seconds.total()

    @property
    def answers(self) -> int:
        """All requests."""
        return self.failed + self.answered

    def add(self, failed: bool, seconds: float) -> None:
        """Counts one request."""
        if failed:
            self.failed += 1
        else:
            self._seconds[_bucket(max(seconds, 1e-6))] += 1

    def joined(self, other: Evidence) -> Evidence:
        """Both together."""
        return Evidence(self.failed + other.failed, self._seconds + other._seconds)

    def quantile(self, rank: int) -> float:
        """Seconds of the `rank`-th fastest answer, counted from 1; to 2 %, upwards."""
        seen = 0
        for bucket in sorted(self._seconds):
            seen += self._seconds[bucket]
            if seen >= rank:
                return math.inf if bucket == _NEVER else math.exp(bucket * _WIDTH)
        raise ValueError(f"1 <= rank <= {self.answered} must hold, but got {rank}")

    def slower(self, seconds: float) -> int:
        """Answers that took longer; those within 2 % of it do not count."""
        edge = _bucket(seconds)
        return sum(count for bucket, count in self._seconds.items() if bucket > edge)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {"failed": self.failed, "seconds": [list(pair) for pair in self._seconds.items()]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evidence:
        """What `to_json` gave; of nothing, no evidence."""
        pairs = content.get("seconds", ())
        return cls(int(content.get("failed", 0)), {int(k): int(n) for k, n in pairs})


def _bucket(seconds: float) -> int:
    return _NEVER if math.isinf(seconds) else math.ceil(math.log(seconds) / _WIDTH - 1e-9)


def harm(
    canary: Evidence, stable: Evidence, errors: float, latency_ratio: float, level: float
) -> str:
    """Why the canary must be taken back; empty where nothing speaks against it.

    Errors: the lower Clopper-Pearson bound (1934) of the canary's failure rate is above the upper
    bound of the stable version's plus `errors`. Latency: more than one in 20 of its answers, by
    the lower bound again, take longer than `latency_ratio` times the stable version's 95th
    percentile (its upper bound by order statistics). All bounds are exact for any count, each at
    confidence 1 - `level`.
    """
    worst = at_least(canary.failed, canary.answers, level)
    allowed = at_most(stable.failed, stable.answers, level) if stable.answers else 0.0
    if worst > allowed + errors:
        return (
            f"{canary.failed} of {canary.answers} requests failed (at least {worst:.2%} with "
            f"{1 - level:.1%} confidence); the stable version fails {stable.failed} of "
            f"{stable.answers} (at most {allowed:.2%}), and {errors:.2%} more are allowed"
        )
    rank = upper_rank(stable.answered, level)
    if rank is None:
        return ""
    tail = stable.quantile(rank)
    slow = canary.slower(latency_ratio * tail)
    share = at_least(slow, canary.answered, level)
    if share > _TAIL:
        return (
            f"{slow} of {canary.answered} answers took more than {latency_ratio:g} x "
            f"{tail * 1000:.1f} ms, the stable version's 95th percentile (at least {share:.1%} "
            f"with {1 - level:.1%} confidence, and {_TAIL:.0%} are allowed)"
        )
    return ""


def at_least(hits: int, tries: int, level: float) -> float:
    """Lower bound of a rate at confidence 1 - `level` (Clopper & Pearson 1934, one-sided)."""
    return float(betaincinv(hits, tries - hits + 1, level)) if hits else 0.0


def at_most(hits: int, tries: int, level: float) -> float:
    """Upper bound of a rate at confidence 1 - `level` (Clopper & Pearson 1934, one-sided)."""
    return float(betaincinv(hits + 1, tries - hits, 1 - level)) if hits < tries else 1.0


def upper_rank(count: int, level: float) -> int | None:
    """Which of `count` sorted values bounds their law's 95th percentile from above.

    The smallest rank r with P(Binomial(count, 0.95) >= r) <= `level`; None where even the
    largest value does not bound it so surely, as below 59 values at a level of 5 %.
    """
    tail = 0.0
    found = None
    for rank in range(count, 0, -1):
        tail += math.exp(
            math.lgamma(count + 1)
            - math.lgamma(rank + 1)
            - math.lgamma(count - rank + 1)
            + rank * math.log(1 - _TAIL)
            + (count - rank) * math.log(_TAIL)
        )
        if tail > level:
            break
        found = rank
    return found
