"""An exponential moving average of the weights, around any engine (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.config.training import EmaConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.base import Engine
from orchestrator.errors import CheckpointError
from orchestrator.host import Worker
from orchestrator.tasks.base import StepOutput, Task


class AveragedEngine:
    """Trains as the engine inside does; evaluates and exports the average of its weights.

    After optimizer step t the average is d·average + (1 − d)·weights, where d = min(decay,
    (1 + t) / (10 + t)) while it warms up. BatchNorm's statistics are averaged like weights. The
    average of a sharded engine is sharded alike.

    Args:
        config: the section.
        inner: the engine that trains.
        worker: this rank.
    """

    def __init__(self, config: EmaConfig, inner: Engine, worker: Worker) -> None:
        self._config, self._inner, self._worker = config, inner, worker
        self._steps, self._shown = 0, False
        self._averages = [tensor.clone() for tensor in self._tensors()]

    @property
    def model(self) -> nn.Module:
        """See `Engine.model`."""
        return self._inner.model

    @property
    def replicated(self) -> bool:
        """See `Engine.replicated`."""
        return self._inner.replicated

    def held_parameters(self) -> list[Tensor]:
        """See `Engine.held_parameters`."""
        return self._inner.held_parameters()

    def refresh(self) -> None:
        """See `Engine.refresh`."""
        self._inner.refresh()

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """See `Engine.train_step`."""
        self._show(False)
        output = self._inner.train_step(task, batch, lr)
        self._steps += 1
        decay = self._config.decay
        if self._config.warmup:
            decay = min(decay, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._tensors(), 1 - decay)
        return output

    def evaluate_step(self, task: Task, batch: Batch) -> StepOutput:
        """See `Engine.evaluate_step`."""
        self._show(True)
        return self._inner.evaluate_step(task, batch)

    def synchronise(self) -> None:
        """See `Engine.synchronise`."""
        for shown in (False, True):
            self._show(shown)
            self._inner.synchronise()

    def save(self, folder: Path) -> None:
        """See `Engine.save`."""
        self._show(False)
        self._inner.save(folder)
        if self._worker.is_main or not self._inner.replicated:
            torch.save({"steps": self._steps, "averages": self._averages}, self._path(folder))

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        self._show(False)
        self._inner.load(folder)
        self._load(folder)

    def load_model_state(self, folder: Path) -> None:
        """See `Engine.load_model_state`."""
        self._show(False)
        self._inner.load_model_state(folder)
        self._load(folder)

    def model_state(self) -> dict[str, Tensor]:
        """See `Engine.model_state`."""
        self._show(True)
        return self._inner.model_state()

    def close(self) -> None:
        """See `Engine.close`."""
        self._inner.close()

    def _tensors(self) -> list[Tensor]:
        """What is averaged, where it lies: parameters or their shards, and buffers of floats."""
        buffers = [
            b for b in self._inner.model.buffers() if b.is_floating_point() and not b.is_meta
        ]
        return [*self._inner.held_parameters(), *buffers]

    @torch.no_grad()
    def _show(self, averaged: bool) -> None:
        """Puts the average, or the weights again, where the engine finds them."""
        if averaged == self._shown:
            return
        for held, other in zip(self._tensors(), self._averages, strict=True):
            aside = held.clone()
            held.copy_(other)
            other.copy_(aside)
        self._inner.refresh()
        self._shown = averaged

    def _load(self, folder: Path) -> None:
        path = self._path(folder)
        if not path.exists():
            raise CheckpointError(f"{folder} holds no average of the weights")
        kept = torch.load(path, map_location=self._worker.device, weights_only=True)
        self._steps = kept["steps"]
        for average, value in zip(self._averages, kept["averages"], strict=True):
            average.copy_(value)

    def _path(self, folder: Path) -> Path:
        rank = 0 if self._inner.replicated else self._worker.rank
        return folder / f"average-{rank}.pt"
