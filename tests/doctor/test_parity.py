"""How the doctor judges traces; the training itself is tested in tests/lab."""

import math

import pytest

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.doctor.parity import EXAMPLE, TOLERANCE, Trace, examine, judge, variants
from orchestrator.host import SingleWorker

CONFIG = ExperimentConfig.model_validate(EXAMPLE)
LOSSES = (2.3, 2.1, 1.9, 1.8)


def traces_of(ways, **changes):
    found = {way.label: Trace(LOSSES) for way in ways if way.config is not None}
    return found | {label: Trace(losses) for label, losses in changes.items()}


def test_variants_cover_engines_stages_and_precisions():
    ways = variants(CONFIG, workers=2, gpus=0)
    assert [way.name for way in ways if way.precision == "fp32"] == [
        "plain",
        "plain",
        *(f"deepspeed, ZeRO {stage}" for stage in range(4)),
        "pipeline of 2",
    ]
    assert {way.precision for way in ways} == {"fp32", "bf16"}
    batch = CONFIG.train.batch_size
    assert {way.config.train.micro_batch for way in ways} == {batch // 2}
    assert all(way.config is not None for way in ways)


def test_what_an_experiment_rules_out_is_skipped_with_the_reason():
    lamb = ExperimentConfig.model_validate({**EXAMPLE, "optimizer": {"type": "lamb"}})
    ways = variants(lamb, workers=2, gpus=0)
    verdicts = judge(ways, traces_of(ways))
    skipped = {one.variant.name: one.trace.error for one in verdicts if one.state == "skipped"}
    assert set(skipped) == {"deepspeed, ZeRO 1", "deepspeed, ZeRO 2", "deepspeed, ZeRO 3"}
    assert all("needs every parameter whole" in why for why in skipped.values())
    assert {one.state for one in verdicts} == {"ok", "skipped"}


@pytest.mark.parametrize("step", [1, 3])
def test_the_first_step_that_differs_is_named(step):
    ways = variants(CONFIG, workers=2, gpus=0)
    wrong = ways[3]
    losses = list(LOSSES)
    for later in range(step - 1, len(losses)):
        losses[later] *= 1 + 2 * TOLERANCE["fp32"]
    verdicts = judge(ways, traces_of(ways) | {wrong.label: Trace(tuple(losses))})
    failed = [one for one in verdicts if one.state == "failed"]
    assert [(one.variant.label, one.differs_at) for one in failed] == [(wrong.label, step)]
    assert failed[0].difference == pytest.approx(2 * TOLERANCE["fp32"])


@pytest.mark.parametrize(
    "trace", [Trace((2.3, math.nan, 1.9, 1.8)), Trace(LOSSES[:2]), Trace((), "RuntimeError: no")]
)
def test_nan_short_and_broken_traces_fail(trace):
    ways = variants(CONFIG, workers=2, gpus=0)
    verdicts = judge(ways, traces_of(ways) | {ways[1].label: trace})
    assert [one.state for one in verdicts].count("failed") == 1
    assert verdicts[1].state == "failed"


def test_examining_one_worker_gives_each_steps_loss():
    ways = [way for way in variants(CONFIG, workers=1, gpus=0) if way.precision == "fp32"][:2]
    reach, traces = examine(worker=SingleWorker(), configs=[way.config for way in ways], steps=3)
    assert reach.right
    assert [len(trace.losses) for trace in traces] == [3, 3]
    assert traces[0].losses == pytest.approx(traces[1].losses, rel=1e-5)
    assert traces[0].losses[0] == pytest.approx(math.log(10), rel=0.2)
