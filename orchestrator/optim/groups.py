"""Parameter groups: which parameters an optimizer sees, and with which weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from orchestrator.config.optimizers import OptimizerPart

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(model: nn.Module, config: OptimizerPart) -> list[dict[str, Any]]:
    """Splits the trainable parameters into those that decay and those that do not.

    Normalisation layers, biases and other vectors are left out of weight decay unless the file
    asks for it: shrinking them changes no function that the next layer could not undo, and hurts
    (Goyal et al., 2017, section 5.3). So are the parameters that a module names in `undecayed`,
    such as a vision transformer's positions and class token.

    Returns:
        Groups for a `torch.optim.Optimizer`, each with `params`, `weight_decay` and `lr_scale`
        (the group's rate relative to the schedule's).
    """
    exempt: set[int] = set()
    if not config.decay_norm_and_bias:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                named = name in getattr(module, "undecayed", ())
                if isinstance(module, NORMS) or parameter.ndim < 2 or named:
                    exempt.add(id(parameter))
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if id(parameter) in exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return [group for group in groups if group["params"]]
