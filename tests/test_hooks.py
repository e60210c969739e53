"""When a run is evaluated and saved."""

import json

import pytest

from orchestrator import api, finish
from orchestrator.config.load import config_from_mapping


def test_evaluations_and_checkpoints_fall_on_parts_of_epochs(tmp_path):
    config = config_from_mapping(
        {
            "name": "parts",
            "data": {"source": {"type": "digits"}},
            "model": {"type": "mlp", "hidden": [8]},
            "scale": {"cpus": 1, "gpus": 0},
            "train": {
                "for": "3 epochs",
                "batch_size": 60,
                "precision": "fp32",
                "memory_format": "contiguous",
            },
            "evaluate": {"every": "0.5 epochs"},
            "checkpoint": {"every": "0.75 epochs", "keep_last": 100, "keep_best": 0},
        }
    )
    epoch = api.plan(config).steps_per_epoch
    assert epoch % 2, "half of it must be no whole step"
    run = api.train(config, runs_dir=tmp_path).root
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if line["split"] == "val"]
    assert [line["step"] for line in evaluated] == [round(k * epoch / 2) for k in range(1, 7)]
    assert [line["epoch"] for line in evaluated][1::2] == [1, 2, 3]
    saved = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.is_dir())
    assert saved == [round(k * 0.75 * epoch) for k in range(1, 5)]


STOPPED = {
    "name": "stopped",
    "data": {"source": {"type": "digits"}},
    "model": {"type": "mlp", "hidden": [8]},
    "scale": {"cpus": 1, "gpus": 0},
    "train": {
        "for": "20 steps",
        "batch_size": 60,
        "precision": "fp32",
        "memory_format": "contiguous",
        # Accuracy can't rise by two: the third evaluation is the last one.
        "early_stopping": {"patience": 2, "min_delta": 2.0},
    },
    "evaluate": {"every": "3 steps"},
    "checkpoint": {"every": "4 steps"},
}


def test_a_stopped_run_whose_export_was_interrupted_trains_no_further(tmp_path, monkeypatch):
    config = config_from_mapping(STOPPED)
    whole = api.train(config, runs_dir=tmp_path / "whole")
    assert whole.step == 9 and "did not improve" in whole.why

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "export", interrupted)
        api.train(config, runs_dir=tmp_path / "half")
    found = api.train(config, runs_dir=tmp_path / "half", resume=True)
    assert (found.step, found.why, found.best) == (whole.step, whole.why, whole.best)
    models = [(one.root / "model.safetensors").read_bytes() for one in (whole, found)]
    assert models[0] == models[1]
