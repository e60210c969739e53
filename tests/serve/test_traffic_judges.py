"""What the operator learns from outcomes and rewards, and what it decides by it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.config.serving import Bandit, Canary
from orchestrator.serve.control.judges import BanditJudge, CanaryJudge, make_judge
from orchestrator.serve.control.trial import Evidence, at_least, at_most, harm, upper_rank
from orchestrator.serve.traffic.rule import Outcome
from orchestrator.serve.traffic.sampling import best_shares, draw_best


def outcomes(version: str, count: int, failed: int = 0, seconds: float = 0.01) -> list[Outcome]:
    """Answers whose seconds spread by 30 % about `seconds`, the same in every run."""
    quantiles = (np.arange(count - failed) + 0.5) / max(1, count - failed)
    times = seconds * np.exp(0.3 * stats.norm.ppf(np.random.default_rng(0).permutation(quantiles)))
    fine = [Outcome(version, False, float(time)) for time in times]
    return [Outcome(version, True, 0.001) for _ in range(failed)] + fine


def evidence(count: int, failed: int = 0, seconds: float = 0.01) -> Evidence:
    found = Evidence()
    for one in outcomes("x", count, failed, seconds):
        found.add(one.failed, one.seconds)
    return found


# --- the test ------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "tries"), [(0, 10), (1, 10), (10, 10), (3, 200), (500, 10_000)])
def test_bounds_are_clopper_and_pearsons(hits, tries):
    interval = stats.binomtest(hits, tries).proportion_ci(0.90, method="exact")
    assert at_least(hits, tries, 0.05) == pytest.approx(interval.low, abs=1e-9)
    assert at_most(hits, tries, 0.05) == pytest.approx(interval.high, abs=1e-9)


@pytest.mark.parametrize("count", [1, 58, 59, 93, 100, 1000, 20_000])
def test_the_ranks_bound_is_exact(count):
    ranks = np.arange(1, count + 1)
    sure = ranks[stats.binom.sf(ranks - 1, count, 0.95) <= 0.05]
    assert upper_rank(count, 0.05) == (int(sure[0]) if len(sure) else None)


def test_seconds_are_kept_to_two_percent():
    times = np.random.default_rng(1).lognormal(-4, 1, 5000)
    found = Evidence()
    for time in times:
        found.add(False, float(time))
    ordered = np.sort(times)
    for rank in (1, 2500, 4750, 5000):
        assert 1 - 1e-9 <= found.quantile(rank) / ordered[rank - 1] < 1.02
    assert found.slower(0.05) == pytest.approx(
        (times > 0.05).sum(), abs=(times > 0.049).sum() * 0.05
    )
    assert found.answers == found.answered == 5000
    again = Evidence.from_json(json.loads(json.dumps(found.to_json())))
    assert again.quantile(4000) == found.quantile(4000)
    both = found.joined(again)
    assert both.answers == 10_000 and both.quantile(8000) == found.quantile(4000)


def test_false_alarms_are_as_rare_as_the_level_says():
    """Equal versions, small counts: the share of rollbacks at level 0.05, margin 0."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(1000):
        canary, stable = Evidence(int(rng.binomial(50, 0.1))), Evidence(int(rng.binomial(200, 0.1)))
        for one, count in ((canary, 50), (stable, 200)):
            for time in rng.lognormal(-4, 0.5, count - one.failed):
                one.add(False, float(time))
        alarms += bool(harm(canary, stable, 0.0, 1.0, 0.05))
    assert alarms / 1000 <= 0.05


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (evidence(200), ""),
        (evidence(200, failed=2), ""),
        (evidence(200, failed=12), "12 of 200 requests failed"),
        (evidence(200, seconds=0.014), ""),
        (evidence(200, seconds=0.03), "took more than 1.5 x"),
        (evidence(3, failed=3), "3 of 3"),
        (evidence(1, failed=1), "1 of 1"),
    ],
)
def test_harm(canary, why):
    found = harm(canary, evidence(2000, failed=2), 0.01, 1.5, 0.05)
    assert (why in found) if why else (found == "")


def test_what_was_given_up_took_longer_than_any_answer():
    """A canary that hangs fails nothing where clients set deadlines of their own."""
    hangs = Evidence()
    for _ in range(200):
        hangs.add(False, math.inf)
    assert "200 of 200 answers took more" in harm(hangs, evidence(2000), 0.01, 1.5, 0.05)
    again = Evidence.from_json(json.loads(json.dumps(hangs.to_json())))
    assert (again.answers, again.quantile(1), again.slower(1e9)) == (200, math.inf, 200)
    # Where the stable version is as slow, there is nothing to compare.
    assert harm(evidence(200), hangs, 0.01, 1.5, 0.05) == ""
    assert harm(hangs, hangs, 0.01, 1.5, 0.05) == ""


def test_one_bad_answer_is_no_early_alarm():
    stable = evidence(2000)
    assert harm(evidence(1, failed=1), stable, 0.01, 1.5, 0.001) == ""
    assert harm(evidence(4, failed=4), stable, 0.01, 1.5, 0.001) != ""


# --- the canary ----------------------------------------------------------------------------

CANARY = Canary(stable="1", canary="2", steps=(0.05, 0.5), requests_per_step=100)


def test_a_good_canary_is_promoted_step_by_step():
    judge = CanaryJudge(CANARY)
    assert judge.state() == {"share": 0.05, "step": 1, "status": "running", "why": ""}
    assert judge.observe(outcomes("1", 1900) + outcomes("2", 99), []) == ()
    (said,) = judge.observe(outcomes("2", 1), [])
    assert "answers 0.5" in said and judge.state()["share"] == 0.5
    judge.observe(outcomes("1", 100), [])
    (said,) = judge.observe(outcomes("2", 100), [])
    assert "promoted" in said
    assert judge.state()["share"] == 1.0 and judge.state()["status"] == "promoted"
    assert judge.observe(outcomes("2", 500, failed=500), []) == ()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (outcomes("2", 100, failed=10), "10 of 100 requests failed"),
        (outcomes("2", 100, seconds=0.04), "95th percentile"),
    ],
)
def test_a_bad_canary_is_rolled_back_at_the_end_of_a_step(bad, why):
    judge = CanaryJudge(CANARY)
    (said,) = judge.observe(outcomes("1", 1900) + bad, [])
    assert "rolled back to 0 %" in said and why in said
    state = judge.state()
    assert state["share"] == 0 and state["status"] == "rolled back" and why in state["why"]


def test_a_broken_canary_is_rolled_back_within_a_few_requests():
    judge = CanaryJudge(CANARY)
    judge.observe(outcomes("1", 400), [])
    asked = 0
    while judge.state()["share"]:
        judge.observe(outcomes("2", 1, failed=1), [])
        asked += 1
    assert asked <= 5


def test_shadows_and_others_are_no_evidence():
    judge = CanaryJudge(CANARY)
    shadows = [Outcome("2", True, 0.1, shadow=True)] * 500
    assert judge.observe([*outcomes("1", 400), *shadows, *outcomes("9", 500, 500)], []) == ()
    assert judge.state()["share"] == 0.05


def test_a_later_step_without_stable_requests_compares_with_the_step_before():
    judge = CanaryJudge(Canary(stable="1", canary="2", steps=(0.5, 1.0), requests_per_step=100))
    judge.observe(outcomes("1", 100) + outcomes("2", 100), [])
    assert judge.state()["share"] == 1.0
    (said,) = judge.observe(outcomes("2", 100, seconds=0.05), [])
    assert "rolled back" in said


def test_a_canary_goes_on_after_a_restart():
    judge, whole = CanaryJudge(CANARY), CanaryJudge(CANARY)
    for part in (outcomes("1", 1000), outcomes("2", 60), outcomes("1", 900), outcomes("2", 45)):
        whole.observe(part, [])
        judge.observe(part, [])
        judge = make_judge(CANARY.model_dump(mode="json"), json.loads(json.dumps(judge.memory())))
    assert judge.memory() == whole.memory() and judge.state()["share"] == 0.5
    judge.observe(outcomes("2", 100, failed=50), [])
    again = make_judge(CANARY.model_dump(mode="json"), judge.memory())
    assert again.state() == judge.state() and again.state()["status"] == "rolled back"


# --- the bandit ----------------------------------------------------------------------------


def test_rewards_are_counted_as_bayes_says():
    judge = BanditJudge(Bandit(versions=("1", "2")))
    judge.observe([], [("1", 1.0), ("1", 0.0), ("1", 1.0), ("2", 0.25), ("9", 1.0)])
    assert judge.state() == {"posteriors": {"1": [3.0, 2.0], "2": [1.25, 1.75]}}
    memory = json.loads(json.dumps(judge.memory()))
    other = make_judge({"type": "bandit", "versions": ["2", "3"]}, memory)
    assert other.state() == {"posteriors": {"2": [1.25, 1.75], "3": [1.0, 1.0]}}


def test_regret_is_far_below_an_even_split_and_near_the_bound():
    """Lai & Robbins' rate (1985): sum of gap / KL, times ln T; an even split loses T times more."""
    rates, horizon, rng = {"1": 0.5, "2": 0.6, "3": 0.7}, 6000, np.random.default_rng(3)
    best = max(rates.values())
    regrets = []
    for _ in range(3):
        judge = BanditJudge(Bandit(versions=tuple(rates)))
        regret = 0.0
        for _ in range(horizon):
            posteriors = {v: tuple(pair) for v, pair in judge.state()["posteriors"].items()}
            version = draw_best(posteriors, dict(zip(rates, rng.random(3), strict=True)))
            judge.observe([], [(version, float(rng.random() < rates[version]))])
            regret += best - rates[version]
        regrets.append(regret)
        assert max(best_shares(posteriors).items(), key=lambda one: one[1])[0] == "3"
    even = horizon * (best - np.mean(list(rates.values())))
    bound = sum(
        (best - p) / (p * math.log(p / best) + (1 - p) * math.log((1 - p) / (1 - best)))
        for p in rates.values()
        if p < best
    ) * math.log(horizon)
    assert np.mean(regrets) < 0.2 * even
    assert np.mean(regrets) < 3 * bound


def test_rules_that_learn_nothing_have_no_judge():
    assert make_judge({"type": "latest"}) is None
    assert make_judge({"type": "weighted", "weights": {"1": 1.0}}) is None
