"""Optimizers: one builder a name, over parameter groups."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from orchestrator.config import optimizers
from orchestrator.config.base import build
from orchestrator.errors import ConfigError
from orchestrator.optim.groups import parameter_groups

Groups = list[dict[str, Any]]


def build_optimizer(config: optimizers.OptimizerPart, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a file asks for, over a model's trainable parameters.

    Raises:
        ConfigError: if the model has none.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ConfigError("the model has no trainable parameter; check model.freeze")
    optimizer: torch.optim.Optimizer = build("optimizer", config, groups=groups)
    return optimizer


def peak_rate(config: optimizers.OptimizerPart, batch_size: int) -> float:
    """The learning rate that the schedule multiplies, grown with the batch where the file says.

    Args:
        batch_size: samples of one optimizer step, over all workers.
    """
    ratio = batch_size / config.base_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.scale_lr]


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


def lamb(config: optimizers.Lamb, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds LAMB; weight decay is part of the update whose norm is compared, as in the paper."""
    from pytorch_optimizer import Lamb

    first, second = config.betas
    betas = (first, second)
    # Else the library multiplies the step, not the moment whose norm is taken, by Adam's bias
    # correction: ten times the rate in the first step.
    uncorrected = {"adam_debias": True}
    made: torch.optim.Optimizer = Lamb(
        groups, lr=config.lr, betas=betas, eps=config.eps, weight_decouple=False, **uncorrected
    )
    return made


def lars(config: optimizers.Lars, *, groups: Groups) -> torch.optim.Optimizer:
    """Builds LARS."""
    from pytorch_optimizer import LARS

    made: torch.optim.Optimizer = LARS(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        trust_coefficient=config.trust,
    )
    return made


def _adam_options(config: optimizers.AdamLike) -> dict[str, Any]:
    first, second = config.betas
    return {"lr": config.lr, "betas": (first, second), "eps": config.eps}
