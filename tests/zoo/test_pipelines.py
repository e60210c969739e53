"""Every model as a pipeline of two ranks: the losses and weights are those of one process."""

from __future__ import annotations

import functools

import pytest
import torch

from orchestrator.config.base import build
from orchestrator.config.engines import PipelineEngineConfig, PlainEngineConfig
from orchestrator.config.optimizers import Sgd
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.host import SingleWorker
from orchestrator.models import reads_tokens
from orchestrator.tasks.classify import Classify
from tests.groups import in_group
from tests.zoo.cases import CASES
from tests.zoo.small import SMALL, images, slim

KINDS = (
    "transformer_decoder",
    "convnet",
    "densenet121",
    "efficientnet",
    "googlenet",
    "lstm",
    "resnet18",
    "swin_tiny",
    "vit_tiny_patch16",
)
"""One of each kind: tied weights, layers of choice, dense blocks, stochastic depth, auxiliary
heads, states, residual blocks, windows, tokens."""
REST = [name for name in SMALL if name not in KINDS]
TASK = Classify(ClassifyTask())
STEPS, CUTS = 2, (2, 2)
"""Steps, and the samples of each micro-batch; fewer are too few for some norms."""


def batches(name):
    key = "tokens" if reads_tokens(name) else "image"
    x = images(name)
    label = torch.arange(len(x)) % 5
    for index in range(STEPS):
        ids = torch.arange(len(x)).roll(index)
        micro = [Batch(i, {key: x[i]}, {"label": label[i]}) for i in ids.split(CUTS)]
        yield GlobalBatch(0, index, len(x), tuple(micro), tuple(range(len(CUTS))))


def train(name, config, worker):
    """Losses of dropping, clipped steps, and the weights after them."""
    engine = build(
        "engine",
        config,
        model=slim(name, **CASES[name].random),
        optimizer=Sgd(lr=0.01, momentum=0.9),
        train=TrainConfig(precision="fp32", memory_format="contiguous", clip_norm=0.5),
        seed=3,
        worker=worker,
    )
    losses = [engine.train_step(TASK, batch, 0.01).loss.item() for batch in batches(name)]
    state = engine.model_state()
    held = sum(p.numel() for p in engine.model.parameters() if not p.is_meta)
    engine.close()
    return losses, state, held


def both_ways(worker, names):
    """As a pipeline together, then alone, the ranks sharing that work."""
    piped = {name: train(name, PipelineEngineConfig(), worker) for name in names}
    alone = {
        name: train(name, PlainEngineConfig(), SingleWorker())[:2]
        for name in names[worker.rank :: worker.world_size]
    }
    return piped, alone


@functools.cache
def outcomes(names):
    ranks = in_group(2, both_ways, names)
    alone = {name: found for _, part in ranks for name, found in part.items()}
    return [piped for piped, _ in ranks], alone


def check(name, names):
    ranks, alone = outcomes(tuple(names))
    losses, state = alone[name]
    for rank in ranks:
        assert rank[name][0] == pytest.approx(losses, rel=1e-5, abs=1e-6)
    found, start = ranks[0][name][1], slim(name, **CASES[name].random).state_dict()
    assert list(found) == list(state)
    # Deep networks whose norms see two values a channel magnify the last bits.
    moved, apart = (
        torch.stack([(a[key].double() - b[key].double()).norm() for key in state]).norm()
        for a, b in ((state, start), (found, state))
    )
    assert apart < 1e-3 * moved
    parameters = sum(p.numel() for p in slim(name).parameters())
    held = [rank[name][2] for rank in ranks]
    assert max(held) < parameters
    assert sum(held) == parameters


@pytest.mark.parametrize("name", KINDS)
def test_a_pipeline_trains_as_one_process_does(name):
    check(name, KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_a_pipeline_trains_the_rest_as_one_process_does(name):
    check(name, REST)
