"""Memory that really runs out in the first steps: a run begins again with smaller micro-batches.

A sample of `wide.Wide` keeps 8 × 8 MiB for the backward pass and works with one to three more, so
a micro-batch of 8 takes at least 576 MiB, one of 4 at most 384.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from orchestrator.config.digest import config_digest
from orchestrator.config.load import config_from_mapping, derive, dump_yaml
from orchestrator.config.yaml import parse_yaml
from orchestrator.errors import ConfigError, OrchError, OutOfMemoryError
from orchestrator.launch.remote import Failure, Packed, WorkFailedError
from orchestrator.run_folder.opening import open_run
from orchestrator.run_folder.paths import RunPaths
from orchestrator.stages import trial
from tests.lab.conftest import Lab

HERE = Path(__file__).parent
FILE = """
version: 1
name: wide
data:
  source: {type: synthetic, samples: 96, test_samples: 2, size: 8, channels: 1, classes: 2}
  split: {val: 0.1, select: 0.02}
model: {type: import, target: "wide:Wide", args: {classes: $outputs, pixels: 64}}
optimizer: {type: sgd, lr: 0.01}
scale: {cpus: 1, gpus: 0}
train: {for: 2 steps, batch_size: 8, micro_batch: 8, precision: fp32,
  memory_format: contiguous, log_every: 1}
evaluate: {every: 2 steps, batch_size: 4}
checkpoint: {every: 2 steps}
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
    assert (train.batch_size, train.micro_batch) == (8, 4)
    assert lab.status("wide")["state"] == "done"
    # The same numbers as those of a run that had the smaller micro-batches from the start.
    lab.run("train", "wide.yaml", "name=small", "train.micro_batch=4")
    assert events(lab, "small") == []
    assert losses(lab, "wide") == losses(lab, "small")
    assert [step for step, _ in losses(lab, "wide")] == [1, 2]
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


def failed_group(root: Path, micro_batch: int = 8) -> Packed:
    """A trial of several workers whose folder is as a rank leaves it that failed."""
    config = config_from_mapping(parse_yaml(FILE, "wide.yaml").values)
    changes = {"train.batch_size": 16, "train.micro_batch": micro_batch, "scale.workers": 2}
    config = derive(config, changes)
    with open_run(
        RunPaths(root), digest=config_digest(config), config_yaml=dump_yaml(config), resume=False
    ) as opened:
        opened.status.finish("failed", "memory ran out")
    arguments = {"config": config, "root": root, "resume": False, "group": "wide"}
    return Packed.of(trial, arguments)


def as_told(error: Exception) -> WorkFailedError:
    """What the process that started the group hears of a rank's exception."""
    return WorkFailedError(Failure.of(error))


def test_a_group_begins_again_with_half_the_micro_batch(tmp_path):
    first = failed_group(tmp_path / "run")
    again = first.after(as_told(OutOfMemoryError("no room", step=1)))
    call, arguments = pickle.loads(again.data)
    train = arguments["config"].train
    assert call is trial
    assert (train.batch_size, train.micro_batch) == (16, 4)
    lines = map(json.loads, RunPaths(tmp_path / "run").events.read_text().splitlines())
    (event,) = [line for line in lines if line["event"] == "out_of_memory"]
    assert (event["before"], event["after"], event["why"]) == (8, 4, "no room")


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("in step 4", step=3), ConfigError("no such thing"), ValueError("a bug")],
)
def test_a_group_is_not_started_again_for_what_would_happen_again(tmp_path, error):
    told = as_told(error)
    with pytest.raises(WorkFailedError) as raised:
        failed_group(tmp_path / "run").after(told)
    assert raised.value is told


def test_a_group_that_can_halve_no_more_says_so(tmp_path):
    with pytest.raises(OrchError, match="even with one sample a forward pass"):
        failed_group(tmp_path / "run", 1).after(as_told(OutOfMemoryError("no room", step=0)))


@pytest.mark.ray
@pytest.mark.slow
def test_one_rank_of_a_trial(lab, monkeypatch):
    monkeypatch.setenv("WIDE_RANK", "1")
    lab.run(
        "sweep",
        "wide.yaml",
        "scale.workers=2",
        "train.batch_size=16",
        "sweep={trials: 1, space: {optimizer.lr: {type: uniform, low: 0.01, high: 0.02}}}",
        "ensemble=null",
    )
    (trial,) = (lab.runs / "wide" / "trials").iterdir()
    name = trial.relative_to(lab.runs)
    (event,) = events(lab, name)
    assert (event["before"], event["after"]) == (8, 4)
    train = config_of(lab, name).train
    assert (train.batch_size, train.micro_batch) == (16, 4)
    assert json.loads((trial / "status.json").read_text())["state"] == "done"


@pytest.mark.ray
@pytest.mark.slow
def test_one_rank_of_a_group(lab, monkeypatch):
    monkeypatch.setenv("WIDE_RANK", "1")
    lab.run("train", "wide.yaml", "scale.workers=2", "train.batch_size=16")
    (event,) = events(lab)
    assert (event["before"], event["after"]) == (8, 4)
    assert config_of(lab, "wide").train.micro_batch == 4
    assert lab.status("wide")["state"] == "done"
