"""`orch train --dry-run`, and `engine.type=auto` in a real run."""

from __future__ import annotations

import json

import pytest

from orchestrator.config.load import load_config
from tests.lab.conftest import Lab

LARGE = """
version: 1
name: large
data: {source: {type: synthetic, samples: 64, test_samples: 8, size: 224, channels: 3, classes: 10}}
model: {type: vit_large_patch16}
scale: {workers: 4, cpus: 1, gpus: 0}
train: {for: 10 steps, batch_size: 2048, precision: bf16, memory_format: contiguous}
"""


@pytest.fixture
def lab(tmp_path) -> Lab:
    lab = Lab(tmp_path)
    (tmp_path / "large.yaml").write_text(LARGE)
    return lab


@pytest.mark.parametrize(
    ("model", "parameters"),
    # Published counts with ten classes in place of a thousand.
    [("vit_large_patch16", 304_326_632 - 990 * 1025), ("resnet152", 60_192_808 - 990 * 2049)],
)
def test_a_large_model_is_planned_without_its_memory(lab, model, parameters):
    done = lab.here("train", "large.yaml", f"model.type={model}", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["parameters"] == parameters
    memory = plan["memory"]
    engines = {one["engine"]: one for one in memory["engines"]}
    assert list(engines) == ["ddp", "zero-0", "zero-1", "zero-2", "zero-3"]
    assert engines["ddp"]["gradients"] == 4 * parameters
    assert engines["ddp"]["optimizer"] == 8 * parameters
    assert engines["zero-1"]["optimizer"] == pytest.approx(2 * parameters, rel=1e-6)
    assert memory["accumulation"] * memory["micro_batch"] * 4 == 2048
    # More than this machine has: had it been allocated, there would be no answer.
    assert engines["ddp"]["peak"] > 40 * 2**30
    assert not engines["ddp"]["fits"]
    choice = memory["choice"]
    assert not choice or choice["train.micro_batch"] < 512
    assert not list(lab.runs.glob("*"))


def test_people_see_a_table(lab):
    done = lab.here("train", "lab.yaml", "--dry-run", "scale.workers=2")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["data", "model", "steps", "memory"]
    rows = [line.split()[0] for line in lines if line.endswith((" yes", " no"))]
    assert rows == ["ddp", "zero-0", "zero-1", "zero-2", "zero-3"]
    assert "choose  train.micro_batch=32 engine.type=plain" in done.stdout
    assert "FLOP a step" in done.stdout


def test_what_this_machine_lacks_is_said(lab):
    change = "engine={type: deepspeed, zero_stage: 3, offload: {parameters: nvme, path: /tmp}}"
    done = lab.here("train", "large.yaml", "--dry-run", change, "scale.workers=1024")
    notes = [line for line in done.stdout.splitlines() if line.startswith("note ")]
    assert "1024 workers with 1 CPU cores each, but this machine has" in notes[0]
    assert "--address" in notes[0]
    assert len(notes) == 1 or "libaio" in notes[1]


def test_a_sweep_is_planned_too(lab):
    done = lab.here("sweep", "sweep.yaml", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["trials"] == 4
    assert plan["memory"]["engines"][0]["engine"] == "plain"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("engine.type=autoo", "did you mean 'auto'"),
        ("train.micro_batch=65", "micro_batch <= batch_size must hold"),
        ("scale.workers=65", "batch_size >= scale.workers must hold"),
        ("train={for: 10 steps, precision: fp16}", "fp16 needs a GPU"),
        ("model.freeze=[nothing.*]", "matches no parameter"),
        ("model={type: import, target: 'torch.nn:NoSuch'}", "NoSuch"),
    ],
)
def test_bad_input_is_refused(lab, change, said):
    failed = lab.here("train", "lab.yaml", "--dry-run", change, code=2)
    assert said in failed.stderr


def test_auto_is_resolved_once_and_written_down(lab):
    lab.here("train", "lab.yaml", "engine.type=auto", "train.for=10 steps")
    run = lab.runs / "lab"
    config = load_config(run / "config.yaml")
    assert (config.engine.type, config.train.micro_batch) == ("plain", 64)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "auto"]
    assert event["engine.type"] == "plain"
    assert "for each worker" in event["message"]
    # A file that says the same gives the same numbers, and repeats the run.
    lab.here("train", "lab.yaml", "name=plain", "train.for=10 steps", "train.micro_batch=64")
    same = [(lab.runs / name / "model.safetensors").read_bytes() for name in ("lab", "plain")]
    assert same[0] == same[1]


def test_of_another_batch_the_batch_is_complained_of(lab):
    given = ("train", "lab.yaml", "engine.type=auto", "train.for=1 step")
    lab.here(*given)
    failed = lab.here(*given, "train.batch_size=32", "--resume", code=2)
    assert "begun with another configuration" in failed.stderr
    assert "train.batch_size: 64 -> 32" in failed.stderr


def test_a_resumed_run_keeps_what_auto_chose(lab):
    process = lab.start("train", "lab.yaml", "engine.type=auto")
    lab.kill_at(process, "lab", step=10)
    process.wait()
    lab.here("train", "lab.yaml", "engine.type=auto", "--resume")
    text = (lab.runs / "lab/events.jsonl").read_text()
    assert text.count('"event": "auto"') == 1
    assert lab.status("lab")["state"] == "done"
