from __future__ import annotations

import json
import math

import pytest

from orchestrator import api
from orchestrator.compiling import Trial, _judge, try_compiling
from orchestrator.config.load import load_config
from orchestrator.errors import ConfigError

FILE = """
version: 1
name: compiled
data: {source: {type: digits}, split: {val: 0.2, select: 0.0, seed: 0}}
model: {type: mlp, hidden: [32], dropout: 0.2}
optimizer: {type: adamw, lr: 1e-3}
train: {for: 9 steps, batch_size: 500, micro_batch: 200, precision: fp32, memory_format: contiguous}
evaluate: {every: 3 steps, batch_size: 300}
checkpoint: {every: 3 steps}
"""


@pytest.mark.parametrize(
    ("trial", "steps", "kept", "why"),
    [
        (Trial(1.0, 0.5, 60, 1e-6), 200, True, "saves about 40 s"),
        (Trial(1.0, 0.5, 60, 1e-6), 119, False, "saves less than it costs"),
        (Trial(1.0, 0.98, 0, 1e-6), 10**6, False, "saves less than it costs"),
        (Trial(1.0, 0.5, 60, 0.002), 10**6, False, "gradients differ by 0.002"),
        (Trial(1.0, 0.5, 60, math.nan), 10**6, False, "gradients differ by nan"),
    ],
)
def test_it_is_kept_where_it_saves_time_and_computes_the_same(trial, steps, kept, why):
    judged = _judge(trial, 1e-3, steps)
    assert judged.kept is kept and why in str(judged)


def test_other_engines_refuse_it(tmp_path):
    path = tmp_path / "compiled.yaml"
    path.write_text(FILE)
    assert load_config(path, ["train.compile=true"]).train.compile is True
    with pytest.raises(ConfigError, match=r"use engine\.type: plain"):
        load_config(path, ["train.compile=true", "engine.type=deepspeed"])


def test_a_short_run_is_not_held_up(tmp_path):
    result = train(tmp_path, "auto")
    assert load_config(result.root / "config.yaml").train.compile is False
    assert "torch.compile" not in (result.root / "events.jsonl").read_text()


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(tmp_path):
    """Dropout included; a short last batch and evaluation are not compiled again."""
    plain, compiled = (losses(train(tmp_path / name, choice).root) for name, choice in RUNS)
    assert len(plain) == 9
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_an_attempt_measures_both(monkeypatch, tmp_path):
    monkeypatch.setattr("orchestrator.auto.FEWEST_STEPS", 1)
    monkeypatch.setattr("orchestrator.auto.LONG_SECONDS", 0.0)
    tried = []

    def attempt(*arguments, **options):
        tried.append(try_compiling(*arguments, **options, long_seconds=0.0))
        return tried[-1]

    monkeypatch.setattr("orchestrator.auto.try_compiling", attempt)
    result = train(tmp_path, "auto")
    (trial,) = tried
    assert trial.plain > 0 and trial.compiled > 0 and trial.deviation < 1e-4
    assert not trial.kept  # nine steps save no minute
    assert "torch.compile is not used" in (result.root / "events.jsonl").read_text()


RUNS = (("plain", "false"), ("compiled", "true"))


def train(folder, choice):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compiled.yaml"
    path.write_text(FILE)
    config = load_config(path, [f"train.compile={choice}", "train.log_every=1"])
    return api.train(config, runs_dir=folder / "runs")


def losses(root):
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [one["values"]["loss"] for one in lines if one["split"] == "train"]
