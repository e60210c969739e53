"""Which version answers: shares, stickiness, what a changed weight moves."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from orchestrator.config.base import build
from orchestrator.config.serving import Bandit, Canary, Latest, Weighted
from orchestrator.serve.traffic.rules import BanditRule, LatestRule, WeightedRule, uniform
from orchestrator.serve.traffic.sampling import best_shares

CLIENTS = [f"client-{n}" for n in range(20_000)]
WEIGHTS = {"1": 0.5, "2": 0.3, "3": 0.2}
VERSIONS = list(WEIGHTS)


def chosen(rule, versions=VERSIONS) -> list[str]:
    return [rule.choose(client, versions) for client in CLIENTS]


def p_value(found: list[str], shares: dict[str, float]) -> float:
    counts = Counter(found)
    return stats.chisquare(
        [counts[v] for v in shares], [share * len(found) for share in shares.values()]
    ).pvalue


def test_shares_of_sticky_clients_are_the_weights():
    # Fixed clients and a fixed hash: the value is the same in every run.
    assert p_value(chosen(WeightedRule(WEIGHTS)), WEIGHTS) > 0.01
    assert p_value(chosen(WeightedRule(WEIGHTS, name="hats")), WEIGHTS) > 0.01


def test_shares_without_clients_are_the_weights():
    rule = WeightedRule(WEIGHTS)
    found = [rule.choose("", VERSIONS) for _ in range(20_000)]
    # Drawn anew in each run: wrong once in a million.
    assert p_value(found, WEIGHTS) > 1e-6


def test_hashed_numbers_are_uniform():
    values = [
        stats.kstest([uniform(f"model-{n}", client) for client in CLIENTS[:5000]], "uniform").pvalue
        for n in range(20)
    ]
    # Under the hypothesis the 20 values are uniform themselves.
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_a_growing_weight_takes_clients_and_moves_no_others():
    before = chosen(WeightedRule({"1": 0.9, "2": 0.05, "3": 0.05}))
    after = chosen(WeightedRule({"1": 0.9, "2": 0.05, "3": 0.15}))
    moved = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
    assert {two for _, two in moved} == {"3"}
    # The least that any assignment could move: the growth of version 3's share.
    assert len(moved) / len(CLIENTS) == pytest.approx(0.15 / 1.1 - 0.05, abs=0.01)


def test_a_version_that_is_away_moves_only_its_clients():
    before = chosen(WeightedRule(WEIGHTS))
    after = chosen(WeightedRule(WEIGHTS), ["1", "3"])
    kept = [one == two for one, two in zip(before, after, strict=True) if one != "2"]
    assert all(kept) and len(kept) > 10_000
    assert p_value(after, {"1": 5 / 7, "3": 2 / 7}) > 0.01


def test_groups_of_two_models_are_independent():
    pairs = Counter(
        zip(
            chosen(WeightedRule({"1": 1, "2": 1}, name="hats")),
            chosen(WeightedRule({"1": 1, "2": 1}, name="shoes")),
            strict=True,
        )
    )
    table = [[pairs[a, b] for b in "12"] for a in "12"]
    assert stats.chi2_contingency(table).pvalue > 0.01


def test_another_process_chooses_the_same():
    code = (
        "from orchestrator.serve.traffic.rules import WeightedRule\n"
        f"rule = WeightedRule({WEIGHTS!r}, name='hats')\n"
        f"print(''.join(rule.choose(f'client-{{n}}', {VERSIONS!r}) for n in range(200)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "".join(chosen(WeightedRule(WEIGHTS, name="hats"))[:200])


def test_not_sticky_draws_anew():
    rule = WeightedRule({"1": 1, "2": 1}, sticky=False)
    assert {rule.choose("client", ["1", "2"]) for _ in range(100)} == {"1", "2"}


def test_shares_say_the_weights_of_what_is_ready():
    rule = WeightedRule(WEIGHTS)
    assert rule.shares(VERSIONS) == pytest.approx(WEIGHTS)
    assert rule.shares(["1", "3", "4"]) == pytest.approx({"1": 5 / 7, "3": 2 / 7, "4": 0})
    assert rule.shares(["4", "5"]) == {"4": 0.0, "5": 1.0}
    assert rule.choose("", ["4", "5"]) == "5"


def test_a_weight_of_zero_gets_nobody():
    assert set(chosen(WeightedRule({"1": 1, "2": 0}))) == {"1"}


@pytest.mark.parametrize(
    "rule",
    [
        LatestRule(Latest(shadows=("3",))),
        WeightedRule({"1": 1, "2": 1}, ("3",)),
        BanditRule(Bandit(versions=("1", "2"), shadows=("3",)), {}),
    ],
)
def test_shadows_never_answer(rule):
    found = {rule.choose(client, VERSIONS) for client in [*CLIENTS[:200], *[""] * 200]}
    assert "3" not in found
    assert list(rule.shadows("1", VERSIONS)) == ["3"]
    assert rule.shadows("1", ["1", "2"]) == []
    assert rule.shares(VERSIONS)["3"] == 0


def test_a_canary_gets_what_its_judge_says():
    config = Canary(stable="1", canary="2")
    for share in (0.0, 0.05, 1.0):
        rule = build("traffic", config, state={"share": share}, name="hats")
        assert rule.shares(["1", "2"]) == pytest.approx({"1": 1 - share, "2": share})
    # Clients of a canary stay with it while its share grows.
    small, large = (
        build("traffic", config, state={"share": share}, name="hats") for share in (0.05, 0.25)
    )
    had = {client for client in CLIENTS if small.choose(client, ["1", "2"]) == "2"}
    assert had < {client for client in CLIENTS if large.choose(client, ["1", "2"]) == "2"}


@pytest.mark.parametrize(
    "section",
    [
        {"stable": "1", "canary": "1"},
        {"stable": "1", "canary": "2", "steps": [0.5, 0.1]},
        {"stable": "1", "canary": "2", "steps": [0.0, 1.0]},
        {"stable": "1", "canary": "2", "steps": []},
    ],
)
def test_a_senseless_canary_is_refused(section):
    with pytest.raises(ValidationError):
        Canary.model_validate(section)


def test_weights_of_nothing_are_refused():
    with pytest.raises(ValidationError, match="above 0"):
        Weighted(weights={"1": 0})


# --- the bandit ----------------------------------------------------------------------------

POSTERIORS = {"1": (20.0, 30.0), "2": (24.0, 26.0), "3": (2.0, 2.0)}


def simulated_shares() -> dict[str, float]:
    rng = np.random.default_rng(0)
    draws = np.stack([rng.beta(a, b, 400_000) for a, b in POSTERIORS.values()])
    counts = np.bincount(draws.argmax(0), minlength=3) / draws.shape[1]
    return dict(zip(POSTERIORS, counts.tolist(), strict=True))


def test_chances_to_be_the_best_are_the_simulated_ones():
    assert best_shares(POSTERIORS) == pytest.approx(simulated_shares(), abs=0.005)


def test_the_bandit_answers_as_often_as_a_version_is_likely_the_best():
    config = Bandit(versions=tuple(POSTERIORS))
    rule = BanditRule(config, POSTERIORS)
    expected = best_shares(POSTERIORS)
    assert p_value(chosen(rule), expected) > 0.01
    found = [rule.choose("", VERSIONS) for _ in range(5_000)]
    assert p_value(found, expected) > 1e-6
    assert rule.shares(VERSIONS) == pytest.approx(expected)


def test_exploring_is_even():
    config = Bandit(versions=("1", "2"), explore=0.5)
    rule = BanditRule(config, {"1": (1000.0, 1.0), "2": (1.0, 1000.0)})
    assert rule.shares(["1", "2"]) == pytest.approx({"1": 0.75, "2": 0.25}, abs=1e-6)
    assert p_value(chosen(rule, ["1", "2"]), {"1": 0.75, "2": 0.25}) > 0.01
    assert rule.shares(["9"]) == {"9": 1.0} and rule.choose("", ["9"]) == "9"
