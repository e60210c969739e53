"""Whether a network trains on the smallest micro-batch that an epoch has."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator import auto
from orchestrator.config.engines import copies
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.data.plan import micro_batch_count, smallest_micro_batch
from orchestrator.data.types import DataInfo
from orchestrator.errors import UserError
from orchestrator.networks import build_network
from orchestrator.plan.profile import pretended_batch
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
    samples, train = info.sizes["train"], config.train
    named = "micro_batch" if train.micro_batch == 1 else "batch_size"
    raise UserError(
        f"train.{named}={getattr(train, named)} leaves a micro-batch of 1 of the {samples:,} "
        f"training samples, and batch norm where {config.model.type} has one value a channel "
        f"needs 2 or more; {_way_out(config, info)}"
    )


def _way_out(config: ExperimentConfig, info: DataInfo) -> str:
    if config.train.micro_batch == 1:
        return "train.micro_batch=2 may do, or auto"
    batch, workers = config.train.batch_size, config.scale.workers
    sizes = range(batch + 1, min(info.sizes["train"], 2 * (batch + workers)) + 1)
    better = next((size for size in sizes if _smallest(config, info, size) > 1), None)
    if better is None:
        return "take fewer scale.workers, or more samples"
    return f"train.batch_size={better} does not"


def _smallest(config: ExperimentConfig, info: DataInfo, batch_size: int) -> int:
    """Samples of the smallest micro-batch with a batch size."""
    readers = copies(config.engine, config.scale.workers)
    train = config.train.model_copy(update={"batch_size": batch_size})
    most = auto.micro_batch(config.model_copy(update={"train": train}), readers)
    count = micro_batch_count(batch_size, most, readers)
    return smallest_micro_batch(info.sizes["train"], batch_size, count)


def _takes_one(config: ExperimentConfig, task: Task, info: DataInfo) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            network = build_network(
                config.model,  # type: ignore[arg-type]
                outputs=task.outputs(info),
                shape=info.shape,
                vocabulary=info.vocabulary,
                per_token=task.per_token,
                load=False,
            )
            if any(isinstance(module, _BatchNorm) for module in network.modules()):
                Task.forward(task, network.train(), pretended_batch(task, info, 1))
    except Exception as error:  # a network may need numbers, or fail for what is told elsewhere
        return _TOO_FEW not in str(error)
    return True
