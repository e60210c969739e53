import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from orchestrator.config.base import build
from orchestrator.config.pipeline import AverageEnsemble, GreedyEnsemble
from orchestrator.ensemble.combine import combine
from orchestrator.errors import DataError, UserError
from orchestrator.run_folder.predictions import Predictions
from tests.ensemble.answers import draw


def choose(method, members, size, how="probabilities"):
    return build("ensemble", method, members=members, size=size, combine=how)


def reference_loss(bag, how, metric):
    """By scikit-learn and SciPy, from the definition."""
    labels = bag[0].labels
    if how == "logits":
        mean = softmax(np.mean([one.logits.astype(np.float64) for one in bag], axis=0), axis=1)
    else:
        mean = np.mean([softmax(one.logits.astype(np.float64), axis=1) for one in bag], axis=0)
    if metric == "nll":
        return log_loss(labels, mean, labels=range(mean.shape[1]))
    return 1 - accuracy_score(labels, mean.argmax(axis=1))


def reference_path(members, start, size, how, metric):
    """Caruana's selection, written down without any sharing of work."""
    alone = sorted(range(len(members)), key=lambda i: reference_loss([members[i]], how, metric))
    path = alone[: min(start, size)]
    nested = [list(path)]
    while len(path) < size:
        losses = {i: reference_loss([members[j] for j in [*path, i]], how, metric) for i in alone}
        path.append(min(alone, key=losses.get))
        nested.append(list(path))
    return min(nested, key=lambda bag: reference_loss([members[i] for i in bag], how, metric))


@pytest.mark.parametrize("how", ["probabilities", "logits"])
@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize(("start", "size"), [(1, 1), (1, 6), (3, 5), (9, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_equals_the_definition(how, metric, start, size, seed):
    members = [draw(10 * seed + i, skill=0.3 + 0.2 * i) for i in range(6)]
    bag = reference_path(members, start, size, how, metric)
    found = dict(choose(GreedyEnsemble(start=start, metric=metric), members, size, how))
    assert found == {i: pytest.approx(bag.count(i) / len(bag)) for i in set(bag)}


def test_the_second_member_is_the_best_partner_of_the_best_single():
    members = [draw(i) for i in range(8)]
    picked = choose(GreedyEnsemble(), members, 2)
    best = min(range(8), key=lambda i: reference_loss([members[i]], "probabilities", "nll"))
    pairs = [[best, other] for other in range(8)]
    pair = min(pairs, key=lambda p: reference_loss([members[i] for i in p], "probabilities", "nll"))
    assert {place for place, _ in picked} == set(pair)


def test_greedy_reaches_the_optimum_where_two_models_complete_each_other():
    labels = np.array([0, 1] * 10)
    right_on_first_half = np.where(np.arange(20) < 10, 4.0, -1.0)
    sign = np.where(labels == 0, 1, -1)

    def model(margin):
        logits = np.stack([sign * margin, -sign * margin], axis=1)
        return Predictions(np.arange(20), labels, logits.astype(np.float32))

    members = [model(right_on_first_half), model(right_on_first_half[::-1]), model(np.full(20, -1))]
    picked = choose(GreedyEnsemble(metric="accuracy"), members, 2, "logits")
    assert sorted(picked) == [(0, 0.5), (1, 0.5)]
    bags = itertools.combinations_with_replacement(range(3), 2)
    best = min(reference_loss([members[i] for i in bag], "logits", "accuracy") for bag in bags)
    assert best == 0 == reference_loss([members[0], members[1]], "logits", "accuracy")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=6), st.integers(1, 8))
def test_greedy_is_never_worse_than_the_best_single(seeds, size):
    members = [draw(seed, samples=15) for seed in seeds]
    picked = choose(GreedyEnsemble(), members, size)
    assert sum(weight for _, weight in picked) == pytest.approx(1)
    assert all(weight > 0 for _, weight in picked)
    bag = [members[place] for place, weight in picked for _ in range(round(weight * 840))]
    single = min(reference_loss([one], "probabilities", "nll") for one in members)
    assert reference_loss(bag, "probabilities", "nll") <= single + 1e-9


def test_greedy_does_not_depend_on_the_order_of_candidates():
    members = [draw(i) for i in range(6)]
    forward = {id(members[i]): w for i, w in choose(GreedyEnsemble(), members, 5)}
    turned = members[::-1]
    assert {id(turned[i]): w for i, w in choose(GreedyEnsemble(), turned, 5)} == forward


def test_equal_candidates_go_to_the_first():
    one = draw(0)
    assert choose(GreedyEnsemble(), [one, one, one], 4) == [(0, 1.0)]
    assert choose(AverageEnsemble(), [one, one, one], 2) == [(0, 0.5), (1, 0.5)]


def test_average_takes_the_most_accurate_with_equal_weights():
    members = [draw(i, samples=200, skill=skill) for i, skill in enumerate([0.1, 3, 1, 2])]
    picked = choose(AverageEnsemble(), members, 3)
    assert picked == [(place, pytest.approx(1 / 3)) for place in (1, 3, 2)]
    assert len(choose(AverageEnsemble(), members, 10)) == 4


@pytest.mark.parametrize("how", ["probabilities", "logits"])
def test_combine_equals_the_formula(how):
    members, weights = [draw(0), draw(1), draw(2)], np.array([0.5, 0.2, 0.3])
    logits = np.stack([one.logits for one in members]).astype(np.float64)
    if how == "logits":
        expected = softmax(np.tensordot(weights, logits, 1), axis=1)
    else:
        expected = np.tensordot(weights, softmax(logits, axis=2), 1)
    np.testing.assert_allclose(combine(members, weights, how), expected, rtol=1e-12)
    np.testing.assert_allclose(combine(members, 7 * weights, how), expected, rtol=1e-12)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [float("nan"), 1]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UserError, match="2 members need as many weights"):
        combine([draw(0), draw(1)], weights, "probabilities")


def test_members_that_answer_other_samples_are_refused():
    one, other = draw(0), draw(1)
    with pytest.raises(DataError, match="at least one"):
        combine([], [], "logits")
    with pytest.raises(DataError, match="other samples"):
        moved = Predictions(other.ids + 1, other.labels, other.logits)
        combine([one, moved], [1, 1], "logits")
    with pytest.raises(DataError, match="answers \\(samples, classes\\)"):
        combine([one, draw(1, samples=39, labels=one.labels[:39])], [1, 1], "logits")
