"""A layer's term in the loss, in whole runs: concrete dropout learns its rate from a file."""

import json
import math

import pytest
import torch

from orchestrator import api
from orchestrator.config.load import config_from_mapping
from orchestrator.data import memory
from orchestrator.data.memory import load_data

START, WIDTH = 0.3, 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    memory._memory.clear()
    yield
    memory._memory.clear()


def trained(tmp_path, lr):
    file = {
        "name": f"lr-{lr}",
        "data": {"source": {"type": "digits"}},
        "model": {
            "type": "convnet",
            "widths": [WIDTH],
            "depth": 1,
            "dropout": START,
            "dropout_kind": "concrete",
        },
        "optimizer": {"type": "adam", "lr": lr},
        "scale": {"cpus": 1, "gpus": 0},
        "train": {
            "for": "20 steps",
            "batch_size": 16,
            "micro_batch": 6,
            "precision": "fp32",
            "memory_format": "contiguous",
        },
    }
    config = config_from_mapping(file)
    root = api.train(config, runs_dir=tmp_path / "runs").root
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    logged = [one["values"] for one in lines if one["split"] == "train"]
    network, _ = api.load_model(root)
    return config, network, logged


def test_the_divergence_from_the_prior_joins_the_loss(tmp_path):
    config, network, logged = trained(tmp_path, lr=1e-12)  # so that nothing moves
    assert network.dropout.rate == pytest.approx(START)
    entropy = -(START * math.log(START) + (1 - START) * math.log(1 - START))
    weights = 0.01**2 * network.fc.weight.square().sum().item() / (2 * (1 - START))
    samples = load_data(config.data).info.sizes["train"]
    assert logged[-1]["penalty"] == pytest.approx((weights - WIDTH * entropy) / samples)


def test_the_rate_is_learned(tmp_path):
    _, network, _ = trained(tmp_path, lr=0.05)
    assert abs(network.dropout.rate - START) > 0.02
    assert torch.isfinite(network.fc.weight).all()
