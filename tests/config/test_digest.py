"""Two files are one experiment if they must give the same results."""

import pytest

from orchestrator.config.digest import config_digest, digest_difference
from orchestrator.config.load import config_from_mapping

FILE = {
    "name": "x",
    "data": {"source": {"type": "parquet", "path": "/a/rows"}},
    "model": {"type": "resnet18", "weights": "/a/w.pth"},
}


def load(*overrides):
    return config_from_mapping(FILE, overrides)


@pytest.mark.parametrize(
    "override",
    [
        "name=y",
        "scale.workers=2",
        "engine={type: deepspeed}",
        "track.wandb.project=p",
        "train.log_every=1",
        "data.source.path=/b/rows",
        "model.weights=/b/w.pth",
        "optimizer={type: adamw, lr: 1e-3}",
        "checkpoint.keep_last=9",
    ],
)
def test_what_does_not_change_results(override):
    assert config_digest(load(override)) == config_digest(load())
    assert digest_difference(load(), load(override)) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lr=3e-3", "optimizer.lr: 0.001 -> 0.003"),
        ("seed=1", "seed: 0 -> 1"),
        ("train.for=2 epochs", 'train.for: "1 epoch" -> "2 epochs"'),
        ("data.split.seed=4", "data.split.seed: 0 -> 4"),
        ("data.source.path=/a/others", 'data.source.path: "rows" -> "others"'),
        ("model.weights=null", 'model.weights: "w.pth" -> (absent)'),
        ("data.augment=[{type: mixup}]", "data.augment: [] -> (absent)"),
    ],
)
def test_what_does(override, line):
    assert config_digest(load(override)) != config_digest(load())
    assert line in digest_difference(load(), load(override))
