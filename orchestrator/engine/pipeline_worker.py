"""A rank's place among the copies of a pipelined model."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from orchestrator.config.base import Part
from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.errors import ConfigError
from orchestrator.host import Worker

T = TypeVar("T")


def reader(engine: Part, worker: Worker) -> Worker:
    """The worker that shares of data are counted by: the rank itself, but in a pipeline.

    The ranks of one pipeline read the same samples, so there `rank` and `world_size` count
    pipelines. Called by every rank.
    """
    if isinstance(engine, PipelineEngineConfig):
        return PipelineWorker(worker, engine.stages)
    return worker


class PipelineWorker:
    """A `Worker` that counts pipelines, not ranks, so that no sample counts once for each stage.

    Rank r of the whole group is stage ``r // copies`` of pipeline ``r % copies``, as in
    DeepSpeed's topology. `sum` and `gather` count each pipeline once; the rest is the whole
    group's. Made by every rank.

    Args:
        worker: this rank of the whole group.
        stages: ranks of one pipeline.

    Attributes:
        group: the ranks that hold the same stage, one of each pipeline.

    Raises:
        ConfigError: if the stages do not divide the group.
    """

    def __init__(self, worker: Worker, stages: int) -> None:
        if worker.world_size % stages:
            raise ConfigError(
                f"engine.stages must divide scale.workers, but got stages={stages}, "
                f"workers={worker.world_size}; set scale.workers to a multiple of {stages}"
            )
        self._worker = worker
        self.device = worker.device
        self.world_size = worker.world_size // stages
        self.stage, self.rank = divmod(worker.rank, self.world_size)
        # Making a group is collective, so every rank makes all of them.
        self.group = [
            dist.new_group(list(range(first, first + self.world_size)))
            for first in range(0, worker.world_size, self.world_size)
        ][self.stage]

    @property
    def is_main(self) -> bool:
        """See `Worker`."""
        return self._worker.is_main

    def barrier(self) -> None:
        """See `Worker`."""
        self._worker.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over pipelines, in place, on every rank."""
        if self.world_size > 1:
            dist.all_reduce(value, group=self.group)
        return value

    def agree(self, flags: int) -> int:
        """See `Worker`."""
        return self._worker.agree(flags)

    def broadcast(self, value: T) -> T:
        """See `Worker`."""
        return self._worker.broadcast(value)

    def gather(self, value: T) -> list[T] | None:
        """The value of every pipeline's first rank on rank 0, None elsewhere."""
        if self.stage > 0:
            return None
        box: list[T | None] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, box, dst=0, group=self.group)
        return box  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the group."""
        dist.destroy_process_group(self.group)
        del self.group
