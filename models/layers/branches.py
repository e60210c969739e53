"""Inception blocks written as tables: branches side by side, joined along channels.

What Inception-v4 and Inception-ResNet-v2 share, named as timm names it: branches are `branch0`,
`branch1` and so on; a branch of one layer is that layer, a longer one a sequence.

These networks, made for 299 pixels, leave some convolutions unpadded, so that the image loses its
borders; these are marked `valid`. The small layout pads them too, and halves the image once where
the original's stem does three times. Names and shapes stay as they are.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import nn

from .auxiliary import ConvNormRelu
from .conv import make_divisible

SMALLEST = 75
"""The smallest image side, in pixels, of which the original layout leaves anything."""


class Conv(NamedTuple):
    """A convolution of a branch, before scaling: output channels, kernel, stride."""

    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    valid: bool = False
    """Not padded in the original layout."""


class Pool(Enum):
    """A 3×3 pooling of a branch."""

    AVERAGE = "average"
    """Of stride 1; what is padded does not count."""
    MAX = "max"
    """Of stride 2, valid."""
    MAX_KEEP = "max keep"
    """Of stride 1, padded; the small layout has it where the original has one of stride 2."""


Layer = Conv | Pool
Block = tuple[tuple[Layer, ...], ...]
"""Branches, each of layers in order."""


class Branches(nn.Module):
    """Modules side by side, their outputs concatenated along channels. NCHW in, NCHW out.

    Args:
        branches: each module by its name, with how many channels it puts out.

    Attributes:
        channels: of the output.
    """

    def __init__(self, branches: Mapping[str, tuple[nn.Module, int]]) -> None:
        super().__init__()
        self.names = tuple(branches)
        self.channels = sum(channels for _, channels in branches.values())
        for name, (module, _) in branches.items():
            self.add_module(name, module)

    def join(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The branches' outputs, concatenated."""
        return torch.cat([self.get_submodule(name)(x_NCHW) for name in self.names], 1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return self.join(x_NCHW)


@dataclass(frozen=True)
class Plan:
    """How the tables become modules.

    Attributes:
        width: multiplies channels, which are then rounded to eights.
        small: take the small layout.
    """

    width: float
    small: bool

    def layer(self, channels_in: int, layer: Layer) -> tuple[nn.Module, int]:
        """One layer, and its output channels."""
        if layer is Pool.AVERAGE:
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False), channels_in
        if isinstance(layer, Pool):
            keeps = layer is Pool.MAX_KEEP
            return nn.MaxPool2d(3, 1 if keeps else 2, int(keeps or self.small)), channels_in
        channels = make_divisible(layer.channels * self.width)
        padding = 0 if layer.valid and not self.small else None
        conv = ConvNormRelu(
            channels_in, channels, layer.kernel, stride=layer.stride, padding=padding
        )
        return conv, channels

    def branch(self, channels_in: int, layers: Sequence[Layer]) -> tuple[nn.Module, int]:
        """Layers in order, and the last one's output channels."""
        modules, channels = [], channels_in
        for layer in layers:
            module, channels = self.layer(channels, layer)
            modules.append(module)
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules), channels

    def branches(self, channels_in: int, block: Block) -> dict[str, tuple[nn.Module, int]]:
        """A block's branches, as `Branches` takes them."""
        return {f"branch{n}": self.branch(channels_in, layers) for n, layers in enumerate(block)}

    def block(self, channels_in: int, block: Block) -> Branches:
        """A whole block."""
        return Branches(self.branches(channels_in, block))
