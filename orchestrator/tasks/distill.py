"""Learning from a teacher's softened probabilities beside the labels."""

from __future__ import annotations

from orchestrator.config.training import DistillTask
from orchestrator.data.types import Batch
from orchestrator.losses import build_soft_loss
from orchestrator.tasks.base import Outputs, StepOutput
from orchestrator.tasks.classify import Classify

TEACHER = "teacher_logits"
"""The target that carries the teacher's logits, float[B, K]."""


class Distill(Classify):
    """(1 − w)·loss(labels) + w·(the teacher's term) (Hinton et al., 2015, section 2)."""

    def __init__(self, config: DistillTask) -> None:
        super().__init__(config)
        self._temperature, self._weight = config.temperature, config.soft_weight
        self._soft_loss = build_soft_loss(config.soft_loss)

    def loss(self, outputs: Outputs, batch: Batch) -> StepOutput:
        """The mixture where the batch has teacher logits, the labels' loss where it has none."""
        hard = super().loss(outputs, batch)
        if TEACHER not in batch.targets:
            return hard
        teacher, label = batch.targets[TEACHER], batch.targets["label"]
        soft = self._soft_loss(hard.outputs, teacher, label, self._temperature)
        mixed = (1 - self._weight) * hard.loss + self._weight * soft
        metrics = {"hard_loss": hard.loss.detach(), "soft_loss": soft.detach()}
        return StepOutput(mixed, hard.outputs, metrics)
