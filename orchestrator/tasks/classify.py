"""One label per sample."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from orchestrator.config.training import ClassifyTask, DistillTask
from orchestrator.data.types import Batch, DataInfo
from orchestrator.losses import build_loss
from orchestrator.tasks.base import Outputs, StepOutput, Task


class Classify(Task):
    """Classification with one of the registered losses."""

    def __init__(self, config: ClassifyTask | DistillTask) -> None:
        self._loss = build_loss(config.loss)
        self._auxiliary_weight = config.auxiliary_weight

    def loss(self, outputs: Outputs, batch: Batch) -> StepOutput:
        """The file's loss of logits [B, K] against labels int64[B] or probabilities [B, K].

        Auxiliary heads add theirs, weighted (Szegedy et al., 2015, section 5).
        """
        label = batch.targets["label"]
        if isinstance(outputs, Tensor):
            return StepOutput(self._loss(outputs, label), outputs)
        logits, *auxiliary = outputs
        loss = self._loss(logits, label)
        for one in auxiliary:
            loss = loss + self._auxiliary_weight * self._loss(one, label)
        return StepOutput(loss, logits)

    def metrics(self, info: DataInfo) -> MetricCollection:
        """Accuracy, top-5 accuracy where there are more than five classes, and cross entropy."""
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(info.classes, average="micro", validate_args=False),
            "nll": NegativeLogLikelihood(),
        }
        if info.classes > 5:
            metrics["top5"] = MulticlassAccuracy(
                info.classes, average="micro", top_k=5, validate_args=False
            )
        return MetricCollection(metrics)


class NegativeLogLikelihood(MeanMetric):
    """The mean of −log p(label), from logits [B, K] and labels int64[B]."""

    def update(self, logits: Tensor, label: Tensor) -> None:  # type: ignore[override]
        """Adds a batch."""
        log_p = logits.float().log_softmax(-1)
        super().update(-log_p.gather(-1, label[:, None]))
