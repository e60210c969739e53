"""What a traffic rule learns from how requests went; lives in the operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.config.base import find
from orchestrator.config.serving import Bandit, Canary
from orchestrator.serve.control.trial import Evidence, harm
from orchestrator.serve.traffic.rule import Outcome


class Judge(Protocol):
    """Learns from outcomes and rewards, and says so to every gateway's rule."""

    def observe(
        self, outcomes: Sequence[Outcome], rewards: Sequence[tuple[str, float]]
    ) -> Sequence[str]:
        """Takes a gateway's report in.

        Args:
            outcomes: how requests went.
            rewards: (version, reward in 0..1), as clients reported them.

        Returns:
            What was decided by it, a sentence each; mostly nothing.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What the rule, and whoever looks at it, needs to know; JSON values."""
        ...

    def memory(self) -> dict[str, Any]:
        """All that was learnt, for the judge that goes on after a restart; JSON values."""
        ...


class CanaryJudge:
    """Gives a canary its next share, or takes all of it back.

    A step ends after `requests_per_step` of the canary's answers. Before that the canary is taken
    back only on overwhelming evidence (`EARLY`), at the end on the usual one (`LEVEL`): the rule
    of Haybittle (1971) and Peto (1976), so that looking often does no harm.

    Args:
        config: steps and margins.
        memory: of the judge before this one.
    """

    LEVEL, EARLY = 0.05, 0.001

    def __init__(self, config: Canary, memory: Mapping[str, Any] | None = None) -> None:
        self._config = config
        memory = memory or {}
        self._step = int(memory.get("step", 0))
        self._status = str(memory.get("status", "running"))
        self._why = str(memory.get("why", ""))
        self._seen = {
            role: Evidence.from_json(memory.get(role, {}))
            for role in ("canary", "stable", "stable_before")
        }

    def observe(
        self, outcomes: Sequence[Outcome], rewards: Sequence[tuple[str, float]]
    ) -> Sequence[str]:
        """See `Judge.observe`."""
        if self._status != "running":
            return ()
        names = {self._config.stable: "stable", self._config.canary: "canary"}
        for one in outcomes:
            if one.version in names and not one.shadow:
                self._seen[names[one.version]].add(one.failed, one.seconds)
        return self._judged()

    def _judged(self) -> Sequence[str]:
        config, canary = self._config, self._seen["canary"]
        done = canary.answers >= config.requests_per_step
        level = self.LEVEL if done else self.EARLY
        why = harm(canary, self._stable(), config.errors, config.latency_ratio, level)
        if why:
            self._status, self._why = "rolled back", why
            return (f"canary {config.canary!r} rolled back to 0 %: {why}",)
        if not done:
            return ()
        self._step += 1
        self._seen["canary"] = Evidence()
        # A later step may leave the stable version few requests, or none, to compare with.
        self._seen["stable_before"], self._seen["stable"] = self._stable(), Evidence()
        if self._step < len(config.steps):
            return (f"canary {config.canary!r} answers {self._share():.4g} of the requests now",)
        self._status = "promoted"
        self._why = f"as good as {config.stable!r} at every step"
        return (f"canary {config.canary!r} promoted to all requests: {self._why}",)

    def _stable(self) -> Evidence:
        """The stable version's answers of this step; if they are few, of the one before too."""
        now = self._seen["stable"]
        enough = now.answers >= self._config.requests_per_step
        return now if enough else now.joined(self._seen["stable_before"])

    def _share(self) -> float:
        if self._status == "running":
            return self._config.steps[self._step]
        return float(self._status == "promoted")

    def state(self) -> dict[str, Any]:
        """Share of the canary, step, status, and how both versions did in this step."""
        return {
            "share": self._share(),
            "step": min(self._step + 1, len(self._config.steps)),
            "status": self._status,
            "why": self._why,
        }

    def memory(self) -> dict[str, Any]:
        """See `Judge.memory`."""
        kept = {role: evidence.to_json() for role, evidence in self._seen.items()}
        return {"step": self._step, "status": self._status, "why": self._why, **kept}


class BanditJudge:
    """Counts rewards: each adds `reward` to its version's alpha and the rest of 1 to its beta.

    For rewards of 0 and 1 that is Bayes' rule under a uniform prior. Rewards between are counted
    in parts, which has the mean of Agrawal & Goyal's coin toss (2012) without its noise.

    Args:
        config: versions.
        memory: of the judge before this one; versions that are gone are dropped.
    """

    def __init__(self, config: Bandit, memory: Mapping[str, Any] | None = None) -> None:
        learnt = (memory or {}).get("posteriors", {})
        self._posteriors = {
            one: [float(value) for value in learnt.get(one, (1, 1))] for one in config.versions
        }

    def observe(
        self, outcomes: Sequence[Outcome], rewards: Sequence[tuple[str, float]]
    ) -> Sequence[str]:
        """See `Judge.observe`."""
        for version, reward in rewards:
            if version in self._posteriors:
                self._posteriors[version][0] += reward
                self._posteriors[version][1] += 1 - reward
        return ()

    def state(self) -> dict[str, Any]:
        """Alpha and beta of each version's mean reward."""
        return {"posteriors": {one: list(pair) for one, pair in self._posteriors.items()}}

    def memory(self) -> dict[str, Any]:
        """See `Judge.memory`."""
        return self.state()


def make_judge(rule: Mapping[str, Any], memory: Mapping[str, Any] | None = None) -> Judge | None:
    """The judge of a traffic section, or None for a rule that learns nothing.

    Args:
        rule: the section.
        memory: what a judge of the same type has learnt.
    """
    config = find("traffic", rule["type"]).config.model_validate(dict(rule))
    if isinstance(config, Canary):
        return CanaryJudge(config, memory)
    if isinstance(config, Bandit):
        return BanditJudge(config, memory)
    return None
