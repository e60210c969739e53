"""What a rank trains with, built from a file before any step: task, loader and engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from orchestrator import auto
from orchestrator.compiling import Trial
from orchestrator.config.base import build
from orchestrator.config.engines import copies
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.training import DistillTask
from orchestrator.data.types import Loader
from orchestrator.engine.averaging import AveragedEngine
from orchestrator.engine.base import Engine
from orchestrator.engine.phases import PhasedEngine
from orchestrator.engine.pipeline_worker import reader
from orchestrator.errors import ConfigError, UserError
from orchestrator.evaluate import check_monitor
from orchestrator.host import Worker
from orchestrator.imported import check_outputs
from orchestrator.models.layers.penalties import set_training_samples
from orchestrator.networks import build_network, freeze_until
from orchestrator.plan import engine as auto_engine
from orchestrator.plan.memory_plan import Choice
from orchestrator.run_folder.paths import resolve_target
from orchestrator.seeding import INIT, derive
from orchestrator.smallest_batch import check_smallest_batch
from orchestrator.tasks.base import Task
from orchestrator.tasks.distill import TEACHER
from orchestrator.teacher import (
    LiveTeacher,
    TaughtLoader,
    check_teacher,
    find_teacher,
    stored_answers,
)


@dataclass
class Parts:
    """What one rank needs to train: built from a file, before any step.

    Attributes:
        reader: what shares of data, metrics and predictions are counted by; see `reader`.
        choice: what the memory plan chose, where the file left the engine to it.
        weights: what the file's weights gave the network; empty where it names none.
    """

    config: ExperimentConfig
    worker: Worker
    reader: Worker
    task: Task
    loader: Loader
    engine: Engine
    choice: Choice | None = None
    weights: str = ""

    def close(self) -> None:
        """Frees memory, devices and background work."""
        self.engine.close()
        self.loader.close()


def prepare(
    config: ExperimentConfig, worker: Worker
) -> tuple[Parts, list[auto.Measurement | Trial]]:
    """Builds task, loader and engine, with every `auto` resolved."""
    task: Task = build("task", config.task)
    view = reader(config.engine, worker)
    loader = build_loader(config, view)
    check_monitor(config.evaluate.monitor, task, loader.info)
    choice: Choice | None = None
    if auto_engine.is_open(config):
        config, choice = auto_engine.choose_engine(
            config, task=task, info=loader.info, worker=worker
        )
        loader.close()
        loader = build_loader(config, view)
    check_outputs(config, task, loader.info)
    check_smallest_batch(config, task, loader.info)
    measured: list[auto.Measurement | Trial] = []
    if auto.is_open(config):
        config, measured = auto.resolve(config, task=task, loader=loader, worker=worker)
    told: list[str] = []
    engine = build_engine(config, task=task, loader=loader, worker=worker, tell=told.append)
    return Parts(config, worker, view, task, loader, engine, choice, next(iter(told), "")), measured


def build_loader(config: ExperimentConfig, worker: Worker) -> Loader:
    """The loader that a file asks for, a teacher's answers joined where the task needs them."""
    task = config.task
    if not isinstance(task, DistillTask):
        return _loader(config, worker, {})
    folder = Path(task.teacher)
    teacher = find_teacher(resolve_target(folder, folder.parent))
    if task.teacher_sees == "augmented":
        loader = _loader(config, worker, {})
        return TaughtLoader(loader, LiveTeacher(teacher, loader.info, worker))
    loader = _loader(config, worker, {TEACHER: stored_answers(teacher)})
    check_teacher(teacher, loader.info)
    return loader


def _loader(
    config: ExperimentConfig, worker: Worker, extra_targets: Mapping[str, np.ndarray]
) -> Loader:
    loader: Loader = build(
        "loader",
        config.data.loader,
        data=config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        # As the run's workers have it, also where one process reads for all of them.
        micro_batch=auto.micro_batch(config, copies(config.engine, config.scale.workers)),
        worker=worker,
        extra_targets=extra_targets,
    )
    return loader


def build_engine(
    config: ExperimentConfig,
    *,
    task: Task,
    loader: Loader,
    worker: Worker,
    tell: Callable[[str], None] = lambda note: None,
) -> Engine:
    """The engine that a file asks for, around a freshly initialised network.

    Phases of unfreezing and an average of the weights are put around it where the file has them.
    What the file's weights gave the network is told whenever a network is built.
    """
    _check_device(config, worker)
    unfreeze = config.train.unfreeze
    total, per_epoch = steps_of(config, loader.steps_per_epoch), loader.steps_per_epoch
    starts = [one.at.steps(per_epoch, total) for one in unfreeze]
    if starts != sorted(starts):
        raise UserError(
            "train.unfreeze must be in order of `at`, but its entries begin at steps "
            f"{', '.join(map(str, starts))}; put the earliest first"
        )

    def of_phase(phase: int, state: Mapping[str, torch.Tensor] | None) -> Engine:
        network = _network(config, task, loader, tell)
        if state is not None:
            network.load_state_dict(state)
        freeze_until(network, [one.parameters for one in unfreeze], phase)
        inner: Engine = build(
            "engine",
            config.engine,
            model=network,
            optimizer=config.optimizer,
            train=config.train,
            seed=config.seed,
            worker=worker,
        )
        ema = config.train.ema
        return AveragedEngine(ema, inner, worker) if ema else inner

    return PhasedEngine(starts, of_phase, worker) if unfreeze else of_phase(0, None)


def _check_device(config: ExperimentConfig, worker: Worker) -> None:
    if config.train.precision == "fp16" and worker.device.type == "cpu":
        raise ConfigError(
            "train.precision: fp16 needs a GPU, but this run is on a CPU; use bf16 or auto, or "
            "set scale.gpus"
        )


def _network(
    config: ExperimentConfig, task: Task, loader: Loader, tell: Callable[[str], None]
) -> nn.Module:
    """The network of a file, freshly initialised by its seed."""
    torch.manual_seed(derive(config.seed, INIT))
    network = build_network(
        config.model,  # type: ignore[arg-type]
        outputs=task.outputs(loader.info),
        shape=loader.info.shape,
        vocabulary=loader.info.vocabulary,
        per_token=task.per_token,
        recompute=config.train.checkpoint_activations,
        tell=tell,
    )
    set_training_samples(network, loader.info.sizes["train"])
    return network


def use_threads(config: ExperimentConfig) -> None:
    """Gives PyTorch the cores that the file says; results depend on their number."""
    if isinstance(config.scale.cpus, int):
        torch.set_num_threads(config.scale.cpus)


def steps_of(config: ExperimentConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run, at least one."""
    return max(config.train.duration.steps(steps_per_epoch), 1)
