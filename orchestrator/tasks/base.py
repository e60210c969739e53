"""The task's seam: what is computed from a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torchmetrics import MetricCollection

from orchestrator.data.types import Batch, DataInfo
from orchestrator.errors import DataError

Outputs = Tensor | tuple[Tensor, ...]
"""What a model returns: its answer; in training, those of auxiliary heads may follow it."""


@dataclass(frozen=True)
class StepOutput:
    """What one step gives.

    Attributes:
        loss: scalar, the mean over the batch's answers: its samples, or what `Task.weight` counts.
        outputs: the model's answer, without those of auxiliary heads.
        metrics: further scalars by name, detached.
        answers: of a task that answers with texts, in evaluation: token numbers [B, T].
    """

    loss: Tensor
    outputs: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    answers: Tensor | None = None


class Task(ABC):
    """What is computed from a batch: a forward pass, a loss, and the metrics that judge it.

    Attributes:
        per_token: whether each token of a text has an answer. Logits are kept as predictions, for
            ensembles and tables, only of tasks with one answer a sample.
    """

    per_token: ClassVar[bool] = False

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """The model's outputs: one input goes by position, several by name."""
        if len(batch.inputs) == 1:
            output: Outputs = model(*batch.inputs.values())
            return output
        named: Outputs = model(**batch.inputs)
        return named

    @property
    def calls_model_once(self) -> bool:
        """Whether `forward` is nothing but one call of the model, as a pipeline needs it."""
        return type(self).forward is Task.forward

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> StepOutput:
        """The loss to be minimised, as the mean over the batch's answers; see `weight`."""

    def weight(self, batch: Batch) -> Tensor | None:
        """How many answers `loss` is the mean of, where they are not the batch's samples.

        Engines weigh micro-batches and ranks by it, so that a step follows the mean over all
        answers of the global batch, however it is cut.

        Returns:
            A whole number on the batch's device, 0 where nothing is answered; None stands for
            the number of samples, which every rank knows without asking the others.
        """
        return None

    @abstractmethod
    def metrics(self, info: DataInfo) -> MetricCollection:
        """Fresh metrics, which `update` gives every evaluated batch."""

    def update(self, metrics: MetricCollection, output: StepOutput, batch: Batch) -> None:
        """Adds an evaluated batch to `metrics`: by default, its outputs and labels."""
        metrics.update(output.outputs.float(), batch.targets["label"].to(output.outputs.device))

    def outputs(self, info: DataInfo) -> int:
        """How many outputs the model's head has.

        Raises:
            DataError: if the data has other answers than the task learns.
        """
        check_answers(info, "label")
        return info.classes


_TASKS = {
    "label": "classify",
    "next token": "language_model",
    "text": "sequence_to_sequence",
}


def check_answers(info: DataInfo, wanted: str) -> None:
    """Refuses data with other answers than a task learns.

    Args:
        wanted: as `DataInfo.answers` has it.

    Raises:
        DataError: naming the task that fits.
    """
    if info.answers != wanted:
        raise DataError(
            f"the task learns each sample's {wanted}, but data.source gives samples whose answer "
            f"is a {info.answers}; set task.type: {_TASKS[info.answers]}"
        )
