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
        # Where p rounds to 1, a power below 1 has an infinite slope, and that times 0 is NaN.
        rest = (1 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).tiny)
        weighted = rest**config.gamma * log_p
        if label.is_floating_point():
            return -(label * weighted).sum(-1).mean()
        return -weighted.gather(-1, label[:, None]).mean()

    return loss


SoftLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Maps logits [B, K], a teacher's logits [B, K], labels (int64[B], or probabilities [B, K]) and a
temperature to the batch's mean."""


def build_soft_loss(config: Part) -> SoftLoss:
    """The teacher's term that a file asks for."""
    loss: SoftLoss = build("soft_loss", config)
    return loss


def kl_divergence(config: training.KlDivergence) -> SoftLoss:
    """Builds T²·KL(teacher‖student); see `soft_cross_entropy`."""

    def loss(logits: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
        return soft_cross_entropy(logits, teacher, temperature)

    return loss


def decoupled(config: training.Decoupled) -> SoftLoss:
    """Builds T²·(α·KL(target or not) + β·KL(among the rest)).

    Zhao et al., "Decoupled Knowledge Distillation", 2022, equations 5 to 7: the plain divergence
    is the first term plus the second weighted by the teacher's doubt, 1 − p(target), which a good
    teacher hardly has; so what it knows of the other classes is lost. Here it has a weight of its
    own.
    """

    def loss(logits: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
        target = label.argmax(-1) if label.is_floating_point() else label
        ours, theirs = (_parted((one.float() / temperature), target) for one in (logits, teacher))
        terms = [
            F.kl_div(student, known, reduction="batchmean", log_target=True)
            for student, known in zip(ours, theirs, strict=True)
        ]
        return (config.target * terms[0] + config.rest * terms[1]) * temperature**2

    return loss


def _parted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target), [B, 2], and among the rest, [B, K − 1]."""
    batch, classes = logits.shape
    hit = F.one_hot(target, classes).bool()
    at_target = logits[hit][:, None]
    rest = logits[~hit].view(batch, classes - 1)
    pair = torch.cat([at_target, rest.logsumexp(-1, keepdim=True)], -1)
    return pair.log_softmax(-1), rest.log_softmax(-1)


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
