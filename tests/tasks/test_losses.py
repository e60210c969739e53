"""Losses and tasks against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from orchestrator.config import training
from orchestrator.data.types import Batch, DataInfo
from orchestrator.losses import build_loss, build_soft_loss, soft_cross_entropy
from orchestrator.tasks.classify import Classify
from orchestrator.tasks.distill import TEACHER, Distill

torch.manual_seed(0)
LOGITS = torch.randn(8, 5)
LABEL = torch.arange(8) % 5


def batch(**targets):
    return Batch(torch.arange(8), {"image": torch.zeros(8, 1)}, {"label": LABEL, **targets})


def test_cross_entropy_with_smoothing_is_the_formula():
    loss = build_loss(training.CrossEntropy(label_smoothing=0.2))
    log_p = LOGITS.log_softmax(-1)
    target = torch.full((8, 5), 0.2 / 5) + 0.8 * F.one_hot(LABEL, 5)
    assert loss(LOGITS, LABEL) == pytest.approx(float(-(target * log_p).sum(-1).mean()), rel=1e-5)


def test_focal_is_the_formula_and_cross_entropy_at_gamma_zero():
    p = LOGITS.softmax(-1).gather(-1, LABEL[:, None])[:, 0]
    expected = -((1 - p) ** 2 * p.log()).mean()
    found = build_loss(training.Focal(gamma=2.0))(LOGITS, LABEL)
    assert found == pytest.approx(float(expected), rel=1e-5)
    plain = build_loss(training.Focal(gamma=0.0))(LOGITS, LABEL)
    assert plain == pytest.approx(float(F.cross_entropy(LOGITS, LABEL)), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", [0, 1])
def test_focal_has_a_gradient_where_a_probability_rounds_to_one(gamma, target):
    logits = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    loss = build_loss(training.Focal(gamma=gamma))
    label = torch.tensor([target])
    one_hot = F.one_hot(label, 3).float()
    for answer in (label, one_hot):
        (found,) = torch.autograd.grad(loss(logits, answer), logits)
        # Far from its target the loss is cross entropy; at it, nothing is left to learn.
        expected = torch.tensor([[1.0, -1.0, 0.0]]) if target else torch.zeros(1, 3)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_soft_labels_equal_hard_ones_when_one_hot():
    one_hot = F.one_hot(LABEL, 5).float()
    for part in (training.CrossEntropy(), training.Focal()):
        loss = build_loss(part)
        assert float(loss(LOGITS, one_hot)) == pytest.approx(float(loss(LOGITS, LABEL)), rel=1e-5)


def test_distillation_term_is_the_formula():
    teacher = torch.randn(8, 5)
    t = 4.0
    q, log_p = (teacher / t).softmax(-1), (LOGITS / t).log_softmax(-1)
    expected = t * t * (q * (q.log() - log_p)).sum(-1).mean()
    assert float(soft_cross_entropy(LOGITS, teacher, t)) == pytest.approx(float(expected), rel=1e-5)
    assert float(soft_cross_entropy(teacher, teacher, t)) == pytest.approx(0, abs=1e-6)


def test_distillation_does_not_care_about_the_teachers_offset():
    teacher = torch.randn(8, 5)
    log_p = teacher.log_softmax(-1)
    one, two = (soft_cross_entropy(LOGITS, x, 3.0) for x in (teacher, log_p))
    assert float(one) == pytest.approx(float(two), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_decoupled_distillation_is_its_parts(temperature):
    teacher = torch.randn(8, 5)
    p, q = ((x / temperature).softmax(-1) for x in (LOGITS, teacher))
    targets, rests, whole = [], [], []
    for b, t in enumerate(LABEL.tolist()):
        others = [k for k in range(5) if k != t]
        p_pair, q_pair = (torch.stack([x[b, t], x[b, others].sum()]) for x in (p, q))
        p_rest, q_rest = (x[b, others] / x[b, others].sum() for x in (p, q))
        targets.append((q_pair * (q_pair / p_pair).log()).sum())
        rests.append((q_rest * (q_rest / p_rest).log()).sum())
        # Equation 6 of the paper: the plain divergence, in these parts.
        whole.append(targets[-1] + (1 - q[b, t]) * rests[-1])
    square = temperature**2
    assert float(soft_cross_entropy(LOGITS, teacher, temperature)) == pytest.approx(
        float(sum(whole)) / 8 * square, rel=1e-5
    )
    for alpha, beta in ((1.0, 1.0), (0.5, 8.0), (0.0, 1.0)):
        loss = build_soft_loss(training.Decoupled(target=alpha, rest=beta))
        expected = (alpha * sum(targets) + beta * sum(rests)) / 8 * square
        one_hot = F.one_hot(LABEL, 5).float()
        for label in (LABEL, one_hot):
            found = loss(LOGITS, teacher, label, temperature)
            assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_two_classes_leave_nothing_to_decouple():
    loss = build_soft_loss(training.Decoupled(target=1.0, rest=5.0))
    logits, teacher = torch.randn(8, 2), torch.randn(8, 2)
    found = loss(logits, teacher, LABEL % 2, 2.0)
    expected = soft_cross_entropy(logits, teacher, 2.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_distill_mixes_by_soft_weight():
    teacher = torch.randn(8, 5)
    task = Distill(training.DistillTask(teacher="t", temperature=2.0, soft_weight=0.7))
    found = task.loss(LOGITS, batch(**{TEACHER: teacher})).loss
    expected = 0.3 * F.cross_entropy(LOGITS, LABEL) + 0.7 * soft_cross_entropy(LOGITS, teacher, 2.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    part = training.Decoupled(rest=3.0)
    task = Distill(training.DistillTask(teacher="t", soft_weight=1.0, soft_loss=part))
    found = task.loss(LOGITS, batch(**{TEACHER: teacher})).loss
    expected = build_soft_loss(part)(LOGITS, teacher, LABEL, 4.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_metrics_are_the_definitions():
    info = DataInfo((1, 1, 1), tuple("abcdefgh"), (0.0,), (1.0,), {"val": 8}, "", "")
    logits = torch.randn(40, 8)
    label = torch.arange(40) % 8
    metrics = Classify(training.ClassifyTask()).metrics(info)
    metrics.update(logits[:30], label[:30])
    metrics.update(logits[30:], label[30:])
    values = metrics.compute()
    assert float(values["accuracy"]) == pytest.approx(
        float((logits.argmax(-1) == label).float().mean())
    )
    assert float(values["nll"]) == pytest.approx(float(F.cross_entropy(logits, label)), rel=1e-5)
    top5 = (logits.topk(5).indices == label[:, None]).any(-1).float().mean()
    assert float(values["top5"]) == pytest.approx(float(top5))
