"""Whether a network trains on the smallest micro-batch that an epoch has."""

from __future__ import annotations

import torch

from orchestrator import auto
from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.data.plan import micro_batch_count, smallest_micro_batch
from orchestrator.data.types import DataInfo
from orchestrator.errors import UserError
from orchestrator.networks import build_network
from orchestrator.plan.profile import Pretence, pretend, pretended_batch
from orchestrator.tasks.base import Task

_TOO_FEW = "Expected more than 1 value per channel"
"""What torch says of a batch norm without anything to take a variance of."""


def check_smallest_batch(config: ExperimentConfig, task: Task, info: DataInfo) -> None:
    """Refuses a batch size that leaves a micro-batch of one sample which a batch norm can't take.

    Raises:
        UserError: naming a batch size that does not.
    """
    if _smallest(config, info, config.train.batch_size) > 1 or _takes_one(config, task, info):
        return
    samples = info.sizes["train"]
    sizes = range(config.train.batch_size + 1, samples + 1)
    better = next((size for size in sizes if _smallest(config, info, size) > 1), None)
    way_out = f"train.batch_size={better} does not"
    if better is None:
        way_out = "take a larger train.micro_batch, or more samples"
    raise UserError(
        f"train.batch_size={config.train.batch_size} leaves a micro-batch of 1 of the "
        f"{samples:,} training samples, and batch norm where {config.model.type} has one value a "
        f"channel needs 2 or more; {way_out}"
    )


def _smallest(config: ExperimentConfig, info: DataInfo, batch_size: int) -> int:
    """Samples of the smallest micro-batch with a batch size."""
    engine, workers = config.engine, config.scale.workers
    readers = workers // engine.stages if isinstance(engine, PipelineEngineConfig) else workers
    train = config.train.model_copy(update={"batch_size": batch_size})
    most = auto.micro_batch(config.model_copy(update={"train": train}), readers)
    count = micro_batch_count(batch_size, most, readers)
    return smallest_micro_batch(info.sizes["train"], batch_size, count)


def _takes_one(config: ExperimentConfig, task: Task, info: DataInfo) -> bool:
    with torch.device("meta"):
        network = build_network(
            config.model,  # type: ignore[arg-type]
            outputs=task.outputs(info),
            shape=info.shape,
            vocabulary=info.vocabulary,
            per_token=task.per_token,
            load=False,
        )
    try:
        with Pretence(torch.device("cpu"))(), torch.no_grad():
            pretend(network, channels_last=False)
            Task.forward(task, network.train(), pretended_batch(task, info, 1))
    except Exception as error:  # a network may need numbers, or fail for what is told elsewhere
        return _TOO_FEW not in str(error)
    return True
