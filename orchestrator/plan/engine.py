"""`engine: {type: auto}`: the memory plan chooses, once, before the first step."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from orchestrator.config.engines import AutoEngineConfig
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive
from orchestrator.data.types import DataInfo
from orchestrator.errors import ConfigError, OrchError
from orchestrator.host import Worker
from orchestrator.plan.machine import room_for
from orchestrator.plan.memory_plan import Choice, MemoryPlanner
from orchestrator.tasks.base import Task


def is_open(config: ExperimentConfig) -> bool:
    """Whether a file leaves its engine to the plan."""
    return isinstance(config.engine, AutoEngineConfig)


def choose_engine(
    config: ExperimentConfig, *, task: Task, info: DataInfo, worker: Worker
) -> tuple[ExperimentConfig, Choice]:
    """The file with an engine and a micro-batch that fit every node of the group.

    Rank 0 plans for the node with the least room. Called by every rank, or by one process for a
    group that starts later.

    Raises:
        ResourceError: if nothing fits.
        UserError: if the network needs numbers to run.
    """
    workers = config.scale.workers
    here = int(os.environ.get("LOCAL_WORLD_SIZE", workers))
    rooms = worker.gather(room_for(worker.device, min(here, workers)))
    choice: Choice | OrchError | None = None
    if worker.is_main:
        assert rooms is not None
        room = min(rooms, key=lambda one: one.each)
        try:
            planner = MemoryPlanner(config, task=task, info=info, device=worker.device, room=room)
            choice = planner.choose()
        except OrchError as error:
            choice = error
    choice = worker.broadcast(choice)
    if isinstance(choice, OrchError):
        raise choice
    assert choice is not None
    return derive(config, choice.changes), choice


def adopt_engine(config: ExperimentConfig, earlier: ExperimentConfig) -> ExperimentConfig:
    """The file with the engine and the micro-batch that an earlier run of it chose.

    Of a run with another batch the micro-batch is left: it may not even fit, and then it, not the
    batch, would be complained of.
    """
    if not is_open(config):
        return config
    changes: dict[str, Any] = {"engine": earlier.engine}
    if config.train.batch_size == earlier.train.batch_size:
        changes["train.micro_batch"] = earlier.train.micro_batch
    return derive(config, changes)


def unresolved(config: AutoEngineConfig, **context: Any) -> NoReturn:
    """What is registered for `auto`, which is no engine itself.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("engine.type=auto has to be resolved by the memory plan first")
