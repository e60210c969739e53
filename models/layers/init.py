"""Initialisers by name.

Glorot and Bengio, 2010 (Xavier); He et al., 2015 (Kaiming); Goyal et al., "Accurate, Large
Minibatch SGD", 2017, section 5.1 (the last norm of a residual branch starts at zero).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from ..names import choose

Fill = Callable[[torch.Tensor], Any]
"""Fills a tensor in place."""

INITIALISERS = (
    "zero",
    "normal",
    "trunc_normal",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
)
"""What `initialise` knows."""


def initialise(
    model: nn.Module,
    name: str,
    *,
    std: float = 0.02,
    mode: str = "fan_in",
    nonlinearity: str = "relu",
) -> None:
    """Draws every kernel and matrix anew and zeroes the biases beside them, in place.

    Convolutions, transposed ones too, linear and bilinear layers and recurrent ones are drawn;
    a parametrised weight is set through its parametrisation. Norms and embeddings keep what they
    have. What is drawn comes from torch's global random state.

    Args:
        model: a network, or any part of it.
        name: one of `INITIALISERS`. `normal` is N(0, std²), `trunc_normal` the same within two
            deviations; the variance is 2 / (fan in + fan out) with Xavier and gain² / fan with
            Kaiming.
        std: of `normal` and `trunc_normal`.
        mode: which fan Kaiming preserves the variance for: `fan_in` (forward) or `fan_out`.
        nonlinearity: whose gain Kaiming takes; a name of `torch.nn.init.calculate_gain`.

    Raises:
        ValueError: for an unknown name, mode or nonlinearity.
    """
    kaiming: dict[str, Any] = {"mode": mode, "nonlinearity": nonlinearity}
    fills: dict[str, Fill] = {
        "zero": nn.init.zeros_,
        "normal": partial(nn.init.normal_, std=std),
        "trunc_normal": partial(nn.init.trunc_normal_, std=std, a=-2 * std, b=2 * std),
        "xavier_uniform": nn.init.xavier_uniform_,
        "xavier_normal": nn.init.xavier_normal_,
        "kaiming_uniform": partial(nn.init.kaiming_uniform_, **kaiming),
        "kaiming_normal": partial(nn.init.kaiming_normal_, **kaiming),
    }
    fill = choose("initialiser", name, fills)
    for module in model.modules():
        for weight_name in _weights_of(module):
            _draw(module, weight_name, fill)
        for bias in _biases_of(module):
            nn.init.zeros_(bias)


def _weights_of(module: nn.Module) -> Iterator[str]:
    if isinstance(module, nn.Linear | nn.Bilinear | _ConvNd):
        yield "weight"
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from (name for name, _ in module.named_parameters() if name.startswith("weight"))


def _biases_of(module: nn.Module) -> Iterator[torch.Tensor]:
    if next(_weights_of(module), None) is not None:
        own = module.named_parameters(recurse=False)
        yield from (parameter for name, parameter in own if name.startswith("bias"))


@torch.no_grad()
def _draw(module: nn.Module, name: str, fill: Fill) -> None:
    weight: torch.Tensor = getattr(module, name)
    computed = is_parametrized(module, name)
    drawn = torch.empty_like(weight) if computed else weight
    # torch counts the inputs on the second axis, where transposed convolutions have outputs.
    fill(drawn.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else drawn)
    if computed:
        setattr(module, name, drawn)


def zero_gamma(model: nn.Module) -> None:
    """Lets residual branches start at zero, by the scale of the norm that each ends in.

    A block with such a branch says where that norm is in its attribute `last_norm`: a path, as
    in ``bn2``; None where it has no branch.

    Raises:
        ValueError: if the model has no such block, or a block's last norm has no scale.
    """
    paths = [(block, path) for block in model.modules() if (path := _last_norm(block))]
    if not paths:
        raise ValueError("zero gammas need residual blocks, but the model has none; leave them out")
    for block, path in paths:
        last = block.get_submodule(path)
        weight = getattr(last, "weight", None)
        if weight is None:
            raise ValueError(
                f"zero gammas need a norm with a scale at the end of each residual branch, but "
                f"{path} is {type(last).__name__}; choose such a norm"
            )
        nn.init.zeros_(weight)


def _last_norm(block: nn.Module) -> str | None:
    found = getattr(block, "last_norm", None)
    return found if isinstance(found, str) else None
