"""What is DeepSpeed's own: its traces in the process, its layout, its files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from orchestrator.config.engines import DeepSpeedEngineConfig
from orchestrator.config.optimizers import Adagrad, NAdam, RAdam, RMSprop, Sgd
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.deepspeed import DeepSpeedEngine
from orchestrator.engine.deepspeed_layout import bare_state, store_channels_last
from orchestrator.errors import CheckpointError, ConfigError, ResourceError
from orchestrator.host import SingleWorker
from orchestrator.tasks.classify import Classify

TASK = Classify(ClassifyTask())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


def batch(size: int = 8) -> GlobalBatch:
    random = torch.Generator().manual_seed(1)
    image = torch.randn(size, 3, 8, 8, generator=random)
    label = torch.randint(4, (size,), generator=random)
    return GlobalBatch(
        0, 0, size, (Batch(torch.arange(size), {"image": image}, {"label": label}),), (0,)
    )


def engine(stage: int, optimizer=None, **train) -> DeepSpeedEngine:
    settings = {"precision": "fp32", "memory_format": "contiguous"} | train
    return DeepSpeedEngine(
        DeepSpeedEngineConfig(zero_stage=stage, persist_below=10),
        model=network(),
        optimizer=optimizer or Sgd(lr=0.1),
        train=TrainConfig(**settings),
        seed=0,
        worker=SingleWorker(),
    )


def test_leaves_the_process_as_it_was():
    for stage in (0, 3):
        made = engine(stage)
        assert dist.is_initialized()
        assert os.environ["LOCAL_RANK"] == "0"
        made.close()
        assert not dist.is_initialized()
        assert "LOCAL_RANK" not in os.environ


def test_fp16_leaves_no_loss_scaling_to_the_next_engine():
    made = engine(1, precision="fp16")
    made.train_step(TASK, batch(), 0.1)
    made.close()
    made = engine(1)
    assert made._engine.optimizer.torch_autocast_gradscaler is None
    made.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp16_skips_steps_that_overflow_and_then_learns(stage):
    made = engine(stage, precision="fp16")
    before = {name: value.clone() for name, value in made.model_state().items()}
    losses = [made.train_step(TASK, batch(), 0.1).loss.item() for _ in range(30)]
    after = made.model_state()
    made.close()
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["0.weight"], after["0.weight"])


@pytest.mark.parametrize("optimizer", [RAdam(), NAdam(), RMSprop()])
def test_every_optimizer_runs_sharded(optimizer):
    made = engine(2, optimizer)
    losses = [made.train_step(TASK, batch(), optimizer.lr).loss.item() for _ in range(8)]
    made.close()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_adagrad_is_refused_where_deepspeed_would_rebuild_it(stage):
    with pytest.raises(ConfigError, match=f"needs engine.zero_stage=0, but it is {stage}"):
        engine(stage, Adagrad())
    made = engine(0, Adagrad())
    losses = [made.train_step(TASK, batch(), 0.01).loss.item() for _ in range(8)]
    made.close()
    assert losses[-1] < losses[0]


def test_stage_3_really_shards():
    made = engine(3)
    assert made.model[0].weight.numel() == 0
    assert made.model_state()["0.weight"].shape == (8, 3, 3, 3)
    made.close()


def test_layout_keeps_parameters_names_and_values():
    model, bare = network(), network().state_dict()
    parameters = {id(parameter) for parameter in model.parameters()}
    stored = store_channels_last(model)
    assert list(stored.values()) == ["0.weight"]  # a 1×1 kernel has no other order
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    state = bare_state(model.state_dict(), stored)
    assert state.keys() == bare.keys()
    assert all(torch.equal(state[name], bare[name]) for name in bare)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_convolutions_see_channels_last_weights(stage):
    made = engine(stage, memory_format="channels_last")
    made.train_step(TASK, batch(), 0.1)
    assert made.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    made.close()


def test_a_folder_without_a_checkpoint(tmp_path):
    made = engine(1)
    with pytest.raises(CheckpointError, match="no DeepSpeed checkpoint"):
        made.load(tmp_path)
    made.close()


def test_a_damaged_checkpoint(tmp_path):
    made = engine(1)
    made.save(tmp_path)
    for file in (tmp_path / "state").glob("*.pt"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="can't read"):
        made.load(tmp_path)
    made.close()


def test_another_kind_of_device_is_refused():
    first = engine(0)
    first.close()
    from orchestrator.engine.deepspeed_setup import import_deepspeed

    with pytest.raises(ResourceError, match="one kind of device per process; it has cpu"):
        import_deepspeed(torch.device("cuda", 0))


def test_prints_nothing_to_stdout(tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import test_deepspeed as t
from pathlib import Path
for stage in (1, 3):
    made = t.engine(stage); made.train_step(t.TASK, t.batch(), 0.1)
    folder = Path({str(tmp_path)!r}) / str(stage); folder.mkdir()
    made.save(folder); made.load(folder); made.load_model_state(folder); made.close()
"""
    (tmp_path / "test_deepspeed.py").write_text(Path(__file__).read_text())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
