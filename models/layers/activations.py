"""Activations by name.

All but `tlu` compute what torch's own modules do; it is the threshold that Singh and Krishnan,
"Filter Response Normalization Layer", 2020, put behind their norm. The gradients of SiLU, Mish and
hard swish need the input again, so that autograd copies what they overwrite: in place takes a pass
over the maps more, and saves no memory. Ours overwrite only what no gradient is wanted of.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..names import choose


class ThresholdedLinear(nn.Module):
    """max(x, τ) with one learned threshold a channel (Singh and Krishnan, 2020).

    NCHW in, NCHW out. The thresholds start at 0, where it is a ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the thresholded input."""
        # In the input's type: a maximum with single precision would double the memory of half.
        return torch.maximum(x_NCHW, self.tau.to(x_NCHW.dtype)[:, None, None])


class SiLU(nn.SiLU):
    """x · sigmoid(x); in place, if asked for, unless a gradient needs the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the activated input."""
        return F.silu(x, inplace=self.inplace and not x.requires_grad)


class Mish(nn.Mish):
    """x · tanh(softplus(x)); in place, if asked for, unless a gradient needs the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the activated input."""
        return F.mish(x, inplace=self.inplace and not x.requires_grad)


class Hardswish(nn.Hardswish):
    """x · relu6(x + 3) / 6; in place, if asked for, unless a gradient needs the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the activated input."""
        return F.hardswish(x, inplace=self.inplace and not x.requires_grad)


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "tlu": ThresholdedLinear,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": SiLU,
    "mish": Mish,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "hardswish": Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
"""What `activation` makes, with torch's default slopes and limits."""

_PER_CHANNEL = ("prelu", "tlu")


def activation(name: str, channels: int | None = None, *, inplace: bool = False) -> nn.Module:
    """A fresh activation.

    Args:
        name: one of `ACTIVATIONS`.
        channels: of the input, on its second axis. `tlu` needs it; `prelu` without it learns
            one slope for all channels; the others have nothing to learn.
        inplace: overwrite the input, where the activation can.

    Raises:
        ValueError: for an unknown name, or `tlu` without channels.
    """
    make = choose("activation", name, ACTIVATIONS)
    if name in _PER_CHANNEL:
        if channels is None and name == "tlu":
            raise ValueError("tlu learns a threshold a channel; say how many with `channels`")
        return make() if channels is None else make(channels)
    can = "inplace" in inspect.signature(make).parameters
    return make(inplace=True) if inplace and can else make()
