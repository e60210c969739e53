"""Losses as pure functions: each builder takes its section and returns (outputs, label) → loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.config import training
from orchestrator.config.base import Part, build

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [B, K] and labels (int64[B], or probabilities [B, K]) to the batch's mean."""


def build_loss(config: Part) -> Loss:
    """The loss that a file asks for."""
    loss: Loss = build("loss", config)
    return loss


def cross_entropy(config: training.CrossEntropy) -> Loss:
    """Builds the cross entropy with label smoothing."""

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), label, label_smoothing=config.label_smoothing)

    return loss


def focal(config: training.Focal) -> Loss:
    """Builds the focal loss −Σ y (1−p)^γ log p (Lin et al., 2017, equation 4, without α)."""

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(-1)
        weighted = (1 - log_p.exp()) ** config.gamma * log_p
        if label.is_floating_point():
            return -(label * weighted).sum(-1).mean()
        return -weighted.gather(-1, label[:, None]).mean()

    return loss


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The distillation term T²·KL(teacher‖student) of softened probabilities.

    T² keeps the gradient's size independent of the temperature (Hinton et al., 2015,
    section 2).

    Args:
        logits: float[B, K], the student's.
        teacher_logits: float[B, K]; log-probabilities serve as well.
        temperature: T > 0.
    """
    student = (logits.float() / temperature).log_softmax(-1)
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * torch.as_tensor(temperature, dtype=divergence.dtype) ** 2
