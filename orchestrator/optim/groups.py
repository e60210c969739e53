"""Parameter groups: which parameters an optimizer sees, at which rate, with which weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from orchestrator.config.optimizers import OptimizerPart
from orchestrator.errors import UserError
from orchestrator.optim.names import match_parameters, stages_of

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(model: nn.Module, config: OptimizerPart) -> list[dict[str, Any]]:
    """Groups the trainable parameters by learning rate and weight decay.

    Normalisation layers, biases and other vectors are left out of weight decay unless the file
    asks for it: shrinking them changes no function that the next layer could not undo, and hurts
    (Goyal et al., 2017, section 5.3). So are the parameters that a module names in `undecayed`,
    such as a vision transformer's positions and class token.

    Returns:
        Groups for a `torch.optim.Optimizer`, each with `params`, `weight_decay` and `lr_scale`
        (the group's rate relative to the schedule's), fastest and most decayed first.

    Raises:
        UserError: for a pattern that matches nothing, or `layer_decay` for a model without stages.
    """
    exempt = set() if config.decay_norm_and_bias else _undecayed(model)
    scales = _scales(model, config)
    own_scale, own_decay = _own_groups(model, config)
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = id(parameter)
            scale = scales.get(key, 1.0) * own_scale.get(key, 1.0)
            decay = own_decay.get(key, 0.0 if key in exempt else config.weight_decay)
            grouped.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": grouped[scale, decay], "weight_decay": decay, "lr_scale": scale}
        for scale, decay in sorted(grouped, reverse=True)
    ]


def _undecayed(model: nn.Module) -> set[int]:
    """The parameters, by identity, that weight decay would only hurt."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, NORMS)
        or parameter.ndim < 2
        or name in getattr(module, "undecayed", ())
    }


def _scales(model: nn.Module, config: OptimizerPart) -> dict[int, float]:
    """The rate of each parameter under `layer_decay`; a shared one goes with its first stage."""
    if config.layer_decay is None:
        return {}
    stages = stages_of(model)
    if not stages:
        raise UserError(
            "optimizer.layer_decay needs a model with stages, but "
            f"{type(model).__name__} has none; use optimizer.groups"
        )
    scales: dict[int, float] = {}
    for depth, stage in enumerate(stages):
        for parameter in stage.parameters():
            scales.setdefault(id(parameter), config.layer_decay ** (len(stages) - 1 - depth))
    return scales


def _own_groups(
    model: nn.Module, config: OptimizerPart
) -> tuple[dict[int, float], dict[int, float]]:
    """Scale, and weight decay where one is given, of the parameters in the file's groups."""
    scale: dict[int, float] = {}
    decay: dict[int, float] = {}
    for number, group in enumerate(config.groups):
        members = {
            id(parameter)
            for pattern in group.parameters
            for parameter in match_parameters(
                model, pattern, key=f"optimizer.groups[{number}].parameters"
            ).values()
        }
        for key in members - scale.keys():
            scale[key] = group.lr_scale
            if group.weight_decay is not None:
                decay[key] = group.weight_decay
    return scale, decay
