"""The engine's seam: how one optimizer step is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.tasks.base import StepOutput, Task


class Engine(Protocol):
    """Owns the model, the optimizer and their precision; applies whole optimizer steps.

    Parity: N ranks with one micro-batch each give the same step as one rank that accumulates N,
    losses weighted by the number of samples, or of whatever `Task.weight` counts.
    """

    @property
    def model(self) -> nn.Module:
        """The bare module, for evaluation and export (sharded parameters may be empty)."""
        ...

    @property
    def replicated(self) -> bool:
        """Whether every rank holds equal weights, so that one rank's file stands for all."""
        ...

    def held_parameters(self) -> list[Tensor]:
        """What this rank holds of the trainable parameters, whole or in parts, where it lies.

        What is written there counts in `evaluate_step` and `model_state` after `refresh`; before
        the next `train_step` the old values have to be back.
        """
        ...

    def refresh(self) -> None:
        """Takes over what was written to `held_parameters`. Called by every rank."""
        ...

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """Forward, backward, accumulation, clipping and update over a rank's micro-batches.

        Args:
            lr: the learning rate of this step; groups with a rate of their own scale with it.

        Returns:
            This rank's part of the global batch's loss, such that the mean over ranks is the
            whole, detached and not read (reading it would wait for the device); and the metrics
            of the last micro-batch.
        """
        ...

    def evaluate_step(self, task: Task, batch: Batch) -> StepOutput:
        """Forward and loss without gradients, in evaluation mode."""
        ...

    def synchronise(self) -> None:
        """Averages BatchNorm's running statistics over ranks. Called by every rank."""
        ...

    def save(self, folder: Path) -> None:
        """Writes model and optimizer into `folder`. Called by every rank, each with own files.

        `synchronise` comes first: BatchNorm's statistics of other ranks than 0 are not kept.
        """
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, to the bit, at the same world size."""
        ...

    def model_state(self) -> dict[str, Tensor]:
        """The whole model's tensors by name, on the CPU. Called by every rank, filled on rank 0."""
        ...

    def load_model_state(self, folder: Path) -> None:
        """Restores only the model from what `save` wrote."""
        ...

    def close(self) -> None:
        """Frees devices and process groups that the engine made."""
        ...
