"""fp16: steps that overflow are skipped by all ranks alike, and clipping measures the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator.config.base import build
from orchestrator.config.engines import DeepSpeedEngineConfig, PlainEngineConfig
from orchestrator.config.optimizers import AdamW, Sgd
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.loss_scale import start_momentum
from orchestrator.host import SingleWorker
from orchestrator.tasks.classify import Classify
from tests.groups import in_group

TASK = Classify(ClassifyTask())
ENGINES = {
    "plain": PlainEngineConfig(),
    **{
        f"stage {stage}": DeepSpeedEngineConfig(zero_stage=stage, persist_below=10)
        for stage in range(4)
    },
}


def network() -> nn.Module:
    """Whose gradients are large: the first step overflows at the scale that fp16 starts with."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        layers[1].weight *= 8
        layers[3].weight *= 8
    return layers


def engine(name: str, optimizer, worker=None, **train):
    settings = {"precision": "fp16", "memory_format": "contiguous"} | train
    return build(
        "engine",
        ENGINES[name],
        model=network(),
        optimizer=optimizer,
        train=TrainConfig(**settings),
        seed=0,
        worker=worker or SingleWorker(),
    )


def batch(rank: int = 0, world: int = 1) -> GlobalBatch:
    """A rank's half of 16 samples; those of the first half are small, so only the last overflow."""
    random = torch.Generator().manual_seed(1)
    image = torch.randn(16, 3, 4, 4, generator=random) * torch.tensor([0.1, 6.0]).repeat_interleave(
        8
    ).view(16, 1, 1, 1)
    label = torch.randint(4, (16,), generator=random)
    parts = [torch.arange(16)] if world == 1 else list(torch.arange(16).chunk(world))
    ids = parts[rank]
    return GlobalBatch(
        0, 0, 16, (Batch(ids, {"image": image[ids]}, {"label": label[ids]}),), (rank,)
    )


def steps(made, count: int, lr: float, rank: int = 0, world: int = 1) -> list[float]:
    return [made.train_step(TASK, batch(rank, world), lr).loss.item() for _ in range(count)]


@pytest.fixture
def unwritten_is_nan():
    """Memory that is asked for and not written to holds NaN, not what happens to be there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["plain", "stage 0", "stage 1"])
def test_momentum_is_there_after_a_skipped_first_step(unwritten_is_nan, name):
    made = engine(name, Sgd(lr=0.1, momentum=0.9))
    before = {key: value.clone() for key, value in made.model_state().items()}
    first, second = steps(made, 2, lr=0.01)
    assert first == second  # skipped
    steps(made, 12, lr=0.01)
    after = made.model_state()
    made.close()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["1.weight"], after["1.weight"])


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_from_zeros_takes_the_same_steps(nesterov):
    reached = []
    for start in (False, True):
        one = torch.linspace(-1, 1, 7).requires_grad_()
        optimizer = torch.optim.SGD([one], lr=0.1, momentum=0.9, nesterov=nesterov, fused=True)
        if start:
            start_momentum(optimizer)
        for _ in range(3):
            one.grad = one.detach().sin()
            optimizer.step()
        reached.append(one.detach())
    assert torch.equal(*reached)


@pytest.mark.parametrize("name", ENGINES)
def test_clips_the_gradient_and_not_its_scaled_copy(name):
    made = engine(name, Sgd(lr=1.0, momentum=0), clip_norm=0.05)
    steps(made, 16, lr=1.0)
    before = {key: value.clone() for key, value in made.model_state().items()}
    steps(made, 1, lr=1.0)
    moved = sum(
        (value - before[key]).double().square().sum() for key, value in made.model_state().items()
    )
    made.close()
    assert float(moved) ** 0.5 == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("name", ENGINES)
def test_a_resumed_run_goes_on_with_its_scale(tmp_path, name):
    made = engine(name, AdamW(), clip_norm=1.0)
    steps(made, 12, lr=0.01)
    made.save(tmp_path)
    expected = steps(made, 3, lr=0.01)
    made.close()
    made = engine(name, AdamW(), clip_norm=1.0)
    made.load(tmp_path)
    found = steps(made, 3, lr=0.01)
    made.close()
    assert found == expected
    assert len(set(found)) == 3  # none of them was skipped


def in_two(worker):
    """Each stage's losses on this rank, and its weights, where only the last rank overflows."""
    found = {}
    for name in ENGINES:
        made = engine(name, AdamW(), worker, clip_norm=1.0)
        losses = steps(made, 20, 0.01, worker.rank, worker.world_size)
        found[name] = losses, made.model_state()
        made.close()
    return found


@pytest.mark.slow
def test_a_step_that_overflows_on_one_rank_is_skipped_on_all():
    ranks = in_group(2, in_two)
    # Ranks that share whole gradients before they look at them can't disagree.
    expected = torch.tensor([rank["plain"][0] for rank in ranks])
    state = ranks[0]["plain"][1]
    assert (expected[:, 0] == expected[:, 1]).all()
    assert expected.mean(0)[-1] < 0.8 * expected.mean(0)[0]
    for name in ENGINES:
        losses = torch.tensor([rank[name][0] for rank in ranks])
        torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.01)
        for key, value in ranks[0][name][1].items():
            torch.testing.assert_close(value, state[key], rtol=0.05, atol=5e-3)
