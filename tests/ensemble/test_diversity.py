import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, matthews_corrcoef

from orchestrator.ensemble.diversity import diversity
from orchestrator.run_folder.predictions import Predictions
from tests.ensemble.answers import draw


def from_answers(answers, labels, classes=2):
    logits = np.eye(classes, dtype=np.float32)[answers]
    return Predictions(np.arange(len(labels)), np.asarray(labels), logits)


def test_measures_equal_their_definitions_on_random_models():
    members = [draw(i, samples=200) for i in range(4)]
    found = diversity(members)
    labels = members[0].labels
    answers = [one.logits.argmax(1) for one in members]
    for i in range(4):
        assert found.accuracies[i] == np.mean(answers[i] == labels)
        for j in range(4):
            assert found.disagreement[i, j] == np.mean(answers[i] != answers[j])
            one, other = answers[i] == labels, answers[j] == labels
            # Of two binary variables, Pearson's correlation is Matthews's coefficient.
            expected = matthews_corrcoef(one, other)
            assert found.error_correlation[i, j] == pytest.approx(expected)
            (n00, n01), (n10, n11) = confusion_matrix(one, other)
            q = (n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10)
            assert found.q_statistic[i, j] == pytest.approx(q)
            flat = [
                softmax(m.logits.astype(float), axis=1).ravel() for m in (members[i], members[j])
            ]
            expected = np.corrcoef(*flat)[0, 1]
            assert found.prediction_correlation[i, j] == pytest.approx(expected)


def test_values_by_hand():
    labels = [0, 0, 0, 0, 0, 0]
    one = from_answers([0, 0, 0, 1, 1, 1], labels)
    other = from_answers([0, 0, 1, 0, 1, 1], labels)
    found = diversity([one, other])
    assert found.disagreement[0, 1] == pytest.approx(2 / 6)
    assert found.q_statistic[0, 1] == pytest.approx((2 * 2 - 1) / (2 * 2 + 1))
    assert found.error_correlation[0, 1] == pytest.approx(1 / 3)
    assert found.summary()["disagreement"] == pytest.approx(2 / 6)


def test_models_that_never_err_together_have_q_of_minus_one():
    labels = [0, 0, 0, 0]
    found = diversity([from_answers([0, 0, 1, 1], labels), from_answers([1, 1, 0, 0], labels)])
    assert found.q_statistic[0, 1] == -1
    assert found.error_correlation[0, 1] == pytest.approx(-1)
    assert found.disagreement[0, 1] == 1


def test_what_is_not_defined_is_left_out_of_the_summary():
    labels = [0, 1, 0, 1]
    perfect = from_answers(labels, labels)
    found = diversity([perfect, from_answers([0, 1, 1, 0], labels)])
    assert np.isnan(found.error_correlation[0, 1])
    assert np.isnan(found.q_statistic[0, 1])
    assert found.summary()["error_correlation"] is None
    assert found.summary()["disagreement"] == 0.5
    assert diversity([perfect]).summary()["disagreement"] is None
