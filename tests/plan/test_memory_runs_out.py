"""Memory that really runs out in the first steps: a run begins again with smaller micro-batches.

A sample of `wide.Wide` keeps 8 × 8 MiB for the backward pass and works with one to three more, so
a micro-batch of 8 takes at least 576 MiB, one of 4 at most 384.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.lab.conftest import Lab

HERE = Path(__file__).parent
FILE = """
version: 1
name: wide
data: {source: {type: digits}, split: {val: 0.02, select: 0.02}}
model: {type: import, target: "wide:Wide", args: {classes: $outputs, pixels: 64}}
optimizer: {type: sgd, lr: 0.01}
scale: {cpus: 1, gpus: 0}
train: {for: 3 steps, batch_size: 16, micro_batch: 8, precision: fp32,
  memory_format: contiguous, log_every: 1}
evaluate: {every: 3 steps, batch_size: 4}
checkpoint: {every: 3 steps}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """A lab whose process may take 480 MiB once training begins."""
    lab = Lab(tmp_path)
    (tmp_path / "wide.yaml").write_text(FILE)
    (tmp_path / "wide.py").write_text((HERE / "wide.py").read_text())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    monkeypatch.setenv("WIDE_ALLOWANCE", "480")
    return lab


def events(lab, name="wide"):
    lines = (lab.runs / name / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "out_of_memory"]


def config_of(lab, name):
    from orchestrator.config.load import load_config

    return load_config(lab.runs / name / "config.yaml")


def losses(lab, name):
    lines = [line for line in lab.lines(name) if line["split"] == "train"]
    return [(line["step"], line["values"]["loss"]) for line in lines]


def test_the_micro_batch_is_halved_and_the_step_stays(lab):
    done = lab.run("train", "wide.yaml")
    assert "micro-batches of 4 instead of 8" in done.stderr
    (event,) = events(lab)
    assert (event["before"], event["after"]) == (8, 4)
    assert "allocate memory" in event["why"]
    train = config_of(lab, "wide").train
    assert (train.batch_size, train.micro_batch) == (16, 4)
    assert lab.status("wide")["state"] == "done"
    # The same numbers as those of a run that had the smaller micro-batches from the start.
    lab.run("train", "wide.yaml", "name=small", "train.micro_batch=4")
    assert events(lab, "small") == []
    assert losses(lab, "wide") == losses(lab, "small")
    assert [step for step, _ in losses(lab, "wide")] == [1, 2, 3]
    same = [(lab.runs / name / "model.safetensors").read_bytes() for name in ("wide", "small")]
    assert same[0] == same[1]


@pytest.mark.slow
def test_a_resumed_run_keeps_the_smaller_micro_batches(lab):
    long = ("train", "wide.yaml", "train.for=400 steps")
    process = lab.start(*long)
    lab.kill_at(process, "wide", step=3)
    process.wait()
    lab.run("train", "wide.yaml", "train.for=400 steps", "train.micro_batch=2", "--resume", code=2)
    process = lab.start(*long, "--resume")
    lab.kill_at(process, "wide", step=6)
    process.wait()
    assert len(events(lab)) == 1
    assert config_of(lab, "wide").train.micro_batch == 4


def test_not_even_one_sample(lab, monkeypatch):
    monkeypatch.setenv("WIDE_ALLOWANCE", "1")
    failed = lab.run("train", "wide.yaml", code=2)
    assert "even with one sample a forward pass" in failed.stderr
    assert "--dry-run" in failed.stderr
    halved = [(event["before"], event["after"]) for event in events(lab)]
    assert halved == [(2 * n, n) for n in (4, 2, 1)]
    assert lab.status("wide")["state"] == "failed"


def test_evaluation_that_does_not_fit_says_so(lab):
    failed = lab.run(
        "train",
        "wide.yaml",
        "train.micro_batch=2",
        "evaluate.batch_size=64",
        "data.split.val=0.2",
        code=2,
    )
    assert "lower evaluate.batch_size (64)" in failed.stderr
    assert events(lab) == []


@pytest.mark.ray
@pytest.mark.slow
def test_one_rank_of_a_group(lab, monkeypatch):
    monkeypatch.setenv("WIDE_RANK", "1")
    lab.run("train", "wide.yaml", "scale.workers=2")
    (event,) = events(lab)
    assert (event["before"], event["after"]) == (8, 4)
    assert config_of(lab, "wide").train.micro_batch == 4
    assert lab.status("wide")["state"] == "done"
