"""What is DeepSpeed's own: its traces in the process, its layout, its files."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from orchestrator.config.engines import DeepSpeedEngineConfig, OffloadConfig
from orchestrator.config.optimizers import Adagrad, Adam, AdamW, NAdam, RAdam, RMSprop, Sgd
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine import deepspeed_setup
from orchestrator.engine.deepspeed import DeepSpeedEngine
from orchestrator.engine.deepspeed_layout import bare_state, store_channels_last
from orchestrator.errors import CheckpointError, ConfigError, ResourceError
from orchestrator.host import SingleWorker
from orchestrator.tasks.classify import Classify

TASK = Classify(ClassifyTask())
CHANNELS_LAST = torch.channels_last


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


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_images_of_one_channel_are_computed_in_the_memory_format(stage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))
    made = DeepSpeedEngine(
        DeepSpeedEngineConfig(zero_stage=stage),
        model=model,
        optimizer=Sgd(lr=0.1),
        train=TrainConfig(precision="fp32", memory_format="channels_last"),
        seed=0,
        worker=SingleWorker(),
    )
    formats = []
    for layer in model[:2]:
        layer.register_forward_hook(
            lambda _, __, maps: formats.append(maps.is_contiguous(memory_format=CHANNELS_LAST))
        )
    whole = batch().micro_batches[0]
    one = Batch(whole.ids, {"input": whole.inputs["image"][:, :1]}, whole.targets)
    made.train_step(TASK, GlobalBatch(0, 0, len(one), (one,), (0,)), 0.1)
    made.close()
    assert formats == [True, True]


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


def test_the_raw_block_reaches_deepspeed_and_its_refusals_are_told():
    def made_with(**zero):
        return DeepSpeedEngine(
            DeepSpeedEngineConfig(zero_stage=1, deepspeed={"zero_optimization": zero}),
            model=network(),
            optimizer=Sgd(lr=0.1),
            train=TrainConfig(precision="fp32", memory_format="contiguous"),
            seed=0,
            worker=SingleWorker(),
        )

    made = made_with(reduce_scatter=False)
    assert made._engine.zero_reduce_scatter() is False
    made.close()
    with pytest.raises(ConfigError, match=r"engine\.deepspeed: .*overlap_com: Extra inputs"):
        made_with(overlap_com=False)
    assert not dist.is_initialized()
    assert "LOCAL_RANK" not in os.environ


def test_offload_to_nvme_needs_libaio(tmp_path):
    if importlib.import_module("deepspeed.ops.op_builder").AsyncIOBuilder().is_compatible():
        pytest.skip("libaio is here")
    offload = OffloadConfig(parameters="nvme", path=str(tmp_path))
    with pytest.raises(ResourceError, match="needs libaio"):
        DeepSpeedEngine(
            DeepSpeedEngineConfig(zero_stage=3, offload=offload),
            model=network(),
            optimizer=Sgd(lr=0.1),
            train=TrainConfig(precision="fp32", memory_format="contiguous"),
            seed=0,
            worker=SingleWorker(),
        )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [Adam(lr=1e-2), AdamW(lr=1e-2, weight_decay=0.1)])
def test_offloaded_adam_steps_as_pytorchs(optimizer):
    steps = {}
    for offload in (None, OffloadConfig()):
        made = DeepSpeedEngine(
            DeepSpeedEngineConfig(zero_stage=1, offload=offload),
            model=network(),
            optimizer=optimizer,
            train=TrainConfig(precision="fp32", memory_format="contiguous"),
            seed=0,
            worker=SingleWorker(),
        )
        steps[offload] = [made.train_step(TASK, batch(), 1e-2).loss.item() for _ in range(5)]
        made.close()
    plain, offloaded = steps.values()
    assert offloaded == pytest.approx(plain, rel=1e-5)
    assert plain[-1] < plain[0]


@pytest.mark.slow
def test_compressed_gradients_are_rounded_alike_on_both_ranks(tmp_path):
    script = tmp_path / "compressed.py"
    script.write_text(COMPRESSED)
    # Standalone: a port of its own, not the one that every launcher takes by default.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, script, "--", str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "steps.pt")
    plain, rounded = found["none"], found["bf16"]
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(rounded, plain, rtol=2e-2, atol=2e-2)


COMPRESSED = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from orchestrator.config.engines import DeepSpeedEngineConfig, OffloadConfig
from orchestrator.config.optimizers import Sgd
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine import deepspeed_setup
from orchestrator.engine.deepspeed import DeepSpeedEngine
from orchestrator.host import GroupWorker
from orchestrator.tasks.classify import Classify

dist.init_process_group("gloo")
worker, steps = GroupWorker(), {}
for compression in ("none", "bf16"):
    torch.manual_seed(0)
    made = DeepSpeedEngine(
        DeepSpeedEngineConfig(zero_stage=1, compression=compression),
        model=nn.Sequential(nn.Flatten(), nn.Linear(48, 4)),
        optimizer=Sgd(lr=0.1),
        train=TrainConfig(precision="fp32", memory_format="contiguous"),
        seed=0,
        worker=worker,
    )
    for index in range(3):
        random = torch.Generator().manual_seed(10 * index + worker.rank)
        image = torch.randn(8, 3, 4, 4, generator=random)
        label = torch.randint(4, (8,), generator=random)
        micro = Batch(torch.arange(8), {"image": image}, {"label": label})
        batch = GlobalBatch(0, index, 16, (micro,), (worker.rank,))
        made.train_step(Classify(ClassifyTask()), batch, 0.1)
    state = made.model_state()
    both = worker.gather(made.model[1].weight.detach().clone())
    if worker.is_main:
        assert torch.equal(*both)
        steps[compression] = state["1.weight"]
    made.close()
if worker.is_main:
    torch.save(steps, Path(sys.argv[-1]) / "steps.pt")
dist.destroy_process_group()
"""


def test_a_compilation_that_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    """Torch waits for the file that says that someone compiles, whether anyone does or not."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with deepspeed_setup._own_extensions():
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
        baton = folder / "cpu_adam" / "lock"
        baton.parent.mkdir()
        baton.touch()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path)
    with deepspeed_setup._own_extensions():
        assert baton.parent.is_dir() and not baton.exists()
