"""Schedules against torch.optim.lr_scheduler and against their formulas."""

import math

import pytest
import torch

from orchestrator.config import schedules
from orchestrator.config.base import entries
from orchestrator.config.duration import Duration
from orchestrator.optim.schedules import build_schedule

PER_EPOCH, TOTAL = 50, 200


def factors(config, total=TOTAL):
    schedule = build_schedule(config, steps_per_epoch=PER_EPOCH, total_steps=total)
    return [schedule(step) for step in range(total)]


def reference(make, lr=1.0, total=TOTAL):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_one_cycle_is_torchs():
    config = schedules.OneCycle(warmup=Duration(25, "%"), start=0.1, final=1e-3)
    expected = reference(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=TOTAL,
            pct_start=0.25,
            div_factor=10,
            final_div_factor=100,
            cycle_momentum=False,
        )
    )
    assert factors(config) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cosine_is_torchs():
    expected = reference(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.1)
    )
    assert factors(schedules.Cosine(final=0.1)) == pytest.approx(expected, rel=1e-6)


def test_multistep_is_torchs():
    config = schedules.MultiStep(milestones=[Duration(1, "epochs"), Duration(75, "%")], gamma=0.3)
    expected = reference(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[50, 150], gamma=0.3)
    )
    assert factors(config) == pytest.approx(expected, rel=1e-9)


def test_step_is_torchs():
    config = schedules.StepSchedule(every=Duration(30, "steps"), gamma=0.5)
    expected = reference(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=30, gamma=0.5))
    assert factors(config) == pytest.approx(expected, rel=1e-9)


def test_polynomial_is_torchs():
    expected = reference(
        lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=TOTAL, power=2.0)
    )
    assert factors(schedules.Polynomial(power=2.0)) == pytest.approx(expected, abs=1e-9)


def test_exponential_multiplies_once_an_epoch():
    found = factors(schedules.Exponential(gamma=0.9))
    assert found[PER_EPOCH] == pytest.approx(0.9)
    assert found[3 * PER_EPOCH] == pytest.approx(0.9**3)


def test_warmup_rises_linearly_and_starts_above_zero():
    found = factors(schedules.Constant(warmup=Duration(10, "steps")))
    assert found[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert found[10:] == [1.0] * (TOTAL - 10)


def test_cosine_after_warmup_spans_the_rest():
    found = factors(schedules.Cosine(warmup=Duration(20, "steps")))
    assert found[20] == pytest.approx(1.0)
    middle = 20 + (TOTAL - 20) // 2
    assert found[middle] == pytest.approx((1 + math.cos(math.pi / 2)) / 2, abs=1e-2)


@pytest.mark.parametrize("entry", list(entries("schedule")), ids=lambda entry: entry.name)
@pytest.mark.parametrize("total", [1, 2, TOTAL])
def test_every_schedule_stays_between_zero_and_one(entry, total):
    extra = {"milestones": [Duration(1, "epochs")]} if entry.name == "multistep" else {}
    found = factors(entry.config(type=entry.name, **extra), total)
    assert len(found) == total
    assert all(0 <= factor <= 1 + 1e-12 for factor in found)
