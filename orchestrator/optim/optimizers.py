"""Optimizers: one builder a name, over parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from orchestrator.config import optimizers
from orchestrator.config.base import build
from orchestrator.optim.groups import parameter_groups

Groups = list[dict[str, Any]]


def build_optimizer(config: optimizers.OptimizerPart, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a file asks for, over a model's trainable parameters.

    Raises:
        ValueError: if the model has none.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("the model has no trainable parameter; check `model.freeze`")
    optimizer: torch.optim.Optimizer = build("optimizer", config, groups=groups)
    return optimizer


def sgd(config: optimizers.Sgd, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds SGD with momentum."""
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )


def adam(config: optimizers.Adam, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds Adam."""
    return torch.optim.Adam(groups, **_adam_options(config), fused=True)


def adamw(config: optimizers.AdamW, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds AdamW."""
    return torch.optim.AdamW(groups, **_adam_options(config), fused=True)


def radam(config: optimizers.RAdam, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds RAdam."""
    return torch.optim.RAdam(groups, **_adam_options(config))


def nadam(config: optimizers.NAdam, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds NAdam."""
    return torch.optim.NAdam(groups, **_adam_options(config))


def rmsprop(config: optimizers.RMSprop, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds RMSprop."""
    return torch.optim.RMSprop(
        groups, lr=config.lr, alpha=config.alpha, momentum=config.momentum, eps=config.eps
    )


def adagrad(config: optimizers.Adagrad, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds Adagrad."""
    return torch.optim.Adagrad(groups, lr=config.lr, eps=config.eps)


def _adam_options(config: optimizers.AdamLike) -> dict[str, Any]:
    first, second = config.betas
    return {"lr": config.lr, "betas": (first, second), "eps": config.eps}
