"""Whole runs of a pipeline: trained, evaluated, interrupted, resumed, exported, read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import orchestrator
from orchestrator.api import plan
from orchestrator.config.load import config_from_mapping, load_config
from orchestrator.errors import ConfigError
from orchestrator.host import SingleWorker
from orchestrator.recipe import run
from orchestrator.run_folder.predictions import read_predictions
from orchestrator.run_folder.status import Status
from orchestrator.stages import export_stopped, train_to_end
from tests.groups import in_group

FILE = {
    "name": "digits",
    "data": {"source": {"type": "digits"}, "split": {"val": 0.1, "select": 0.1}},
    "model": {"type": "convnet", "widths": [8, 16], "dropout": 0.2},
    "optimizer": {"type": "adamw", "lr": 0.01},
    "train": {
        "for": "12 steps",
        "batch_size": 64,
        "micro_batch": 16,
        "precision": "fp32",
        "memory_format": "contiguous",
        "clip_norm": 1.0,
    },
    "evaluate": {"every": "6 steps", "batch_size": 50},
    "checkpoint": {"every": "4 steps"},
    "scale": {"cpus": 1},
}
PIPELINE = "engine={type: pipeline, stages: 2}"
PAIR = [PIPELINE, "scale.workers=2"]


def config_of(*overrides):
    return config_from_mapping(FILE, overrides)


def train(worker, overrides, root, stop_at=None):
    """One run; where it is to stop, it ends there as if the process had been killed."""
    config = config_of(*overrides)
    if stop_at is None:
        train_to_end(worker=worker, config=config, root=Path(root))
        return
    for info in run(config, worker=worker, root=Path(root)):
        if info.step == stop_at:
            return


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder):
    train(SingleWorker(), [], folder / "alone")
    return folder / "alone"


def whole_and_half(worker, overrides, root):
    """A run to its end, and in the same processes one that ends after its first checkpoint."""
    train(worker, overrides, f"{root}/piped")
    train(worker, overrides, f"{root}/killed", stop_at=6)


@pytest.fixture(scope="module")
def piped(folder):
    in_group(2, whole_and_half, PAIR, str(folder))
    return folder / "piped"


def predictions(root, split):
    return read_predictions(root / "predictions" / f"{split}.parquet")


def same_run(first, second, tolerance):
    for split in ("val", "select"):
        a, b = predictions(first, split), predictions(second, split)
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.labels, b.labels)
        np.testing.assert_allclose(a.logits, b.logits, rtol=tolerance, atol=tolerance)
    statuses = [Status.read(root / "status.json") for root in (first, second)]
    (one, other) = [status.best.metrics for status in statuses]
    assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def test_a_pipelined_run_is_the_run_of_one_process(alone, piped):
    same_run(alone, piped, 1e-3)


@pytest.mark.slow
def test_copies_of_a_pipeline_count_every_sample_once(alone, folder):
    overrides = [PIPELINE, "scale.workers=4", "model.norm=group"]
    in_group(4, train, overrides, str(folder / "copies"))
    train(SingleWorker(), ["model.norm=group"], folder / "group")
    same_run(folder / "group", folder / "copies", 1e-3)


def test_the_cut_is_measured_once_and_written(piped):
    engine = load_config(piped / "config.yaml").engine
    assert len(engine.cut) == 2
    assert sum(engine.cut) == len(config_stages())


def config_stages():
    from orchestrator.networks import build_network

    return build_network(config_of().model, outputs=10, shape=(1, 8, 8)).stages()


def test_what_is_exported_answers_as_the_run_did(piped):
    found = orchestrator.evaluate(piped, split="val")
    best = Status.read(piped / "status.json").best.metrics
    assert found.accuracy == pytest.approx(best["val/accuracy"])
    assert found.nll == pytest.approx(best["val/nll"], rel=1e-4)


def export_then_train(worker, overrides, root):
    """A run that was stopped is exported as it is, then goes on: as a sweep that grows has it."""
    export_stopped(worker=worker, root=Path(root))
    exported = read_predictions(Path(root, "predictions", "val.parquet"))
    train(worker, overrides, root)
    return float((exported.logits.argmax(1) == exported.labels).mean())


def test_a_killed_run_is_exported_and_goes_on_to_the_bit(piped, folder):
    killed = folder / "killed"
    assert not (killed / "model.safetensors").exists()
    evaluated = Status.read(killed / "status.json").best.metrics["val/accuracy"]
    exported, _ = in_group(2, export_then_train, PAIR, str(killed))
    assert exported == pytest.approx(evaluated)
    a, b = predictions(piped, "val"), predictions(killed, "val")
    assert np.array_equal(a.logits, b.logits)


def test_a_model_with_too_few_stages_is_refused_when_it_is_built(folder):
    overrides = ["engine={type: pipeline, stages: 40}", "scale.workers=40"]
    config = config_of(*overrides)
    with pytest.raises(ConfigError, match="must not exceed the model's own stages, but got 40"):
        plan(config)
