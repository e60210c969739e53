"""The task's seam: what is computed from a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn
from torchmetrics import MetricCollection

from orchestrator.data.types import Batch, DataInfo

Outputs = Tensor | tuple[Tensor, ...]
"""What a model returns: its answer; in training, those of auxiliary heads may follow it."""


@dataclass(frozen=True)
class StepOutput:
    """What one step gives.

    Attributes:
        loss: scalar, the mean over the batch's samples.
        outputs: the model's answer, without those of auxiliary heads.
        metrics: further scalars by name, detached.
    """

    loss: Tensor
    outputs: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """What is computed from a batch: a forward pass, a loss, and the metrics that judge it."""

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """The model's outputs: one input goes by position, several by name."""
        if len(batch.inputs) == 1:
            output: Outputs = model(*batch.inputs.values())
            return output
        named: Outputs = model(**batch.inputs)
        return named

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> StepOutput:
        """The loss to be minimised, as the mean over the batch's samples."""

    @abstractmethod
    def metrics(self, info: DataInfo) -> MetricCollection:
        """Fresh metrics, updated with ``(outputs, labels)`` of every evaluated batch."""

    def outputs(self, info: DataInfo) -> int:
        """How many outputs the model's head has."""
        return info.classes
