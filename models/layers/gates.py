"""Attention over channels and places that scales an image's features, by name.

Squeeze-excite (Hu et al., 2018) is in `conv.py`. Here are ECA (Wang et al., "ECA-Net: Efficient
Channel Attention for Deep Convolutional Neural Networks", 2020) and CBAM (Woo et al., "CBAM:
Convolutional Block Attention Module", 2018).

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ..names import choose
from .conv import SqueezeExcite, spatial_mean

REDUCTION = 16
"""How many times fewer units than channels SE and CBAM squeeze to: both papers' choice."""
MIN_SQUEEZED = 8
"""Never fewer units than this, so that narrow networks keep something to choose with."""


class EfficientChannelAttention(nn.Module):
    """Scales each channel by a gate computed from its neighbours' means (Wang et al., 2020).

    A convolution along the channels, shared by all, in place of squeeze-excite's two layers.
    NCHW in, NCHW out.

    Args:
        channels: C.
        kernel: how many neighbours, an odd number; by default `eca_kernel` of the channels.
    """

    def __init__(self, channels: int, kernel: int | None = None) -> None:
        super().__init__()
        kernel = eca_kernel(channels) if kernel is None else kernel
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and above 0, but got {kernel}; 3 is common")
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the scaled input."""
        gate_N1C = torch.sigmoid(self.conv(spatial_mean(x_NCHW)[:, None]))
        return x_NCHW * gate_N1C.transpose(1, 2)[..., None]


def eca_kernel(channels: int, gamma: float = 2, b: float = 1) -> int:
    """The odd number nearest to (log₂ C + b) / γ; half-way it is the larger one."""
    return 2 * int((math.log2(channels) + b) / gamma / 2) + 1


class ChannelAttention(nn.Module):
    """σ(MLP(mean) + MLP(maximum)) of each channel's pixels (Woo et al., 2018, equation 2).

    NCHW in, the scaled NCHW out. The two layers are shared and have no bias.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed, bias=False)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(squeezed, channels, bias=False)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the scaled input."""
        pooled = (spatial_mean(x_NCHW), x_NCHW.amax((2, 3)))
        both_NS = [self.activation(self.fc1(one_NC)) for one_NC in pooled]
        gate_NC = torch.sigmoid(self.fc2(both_NS[0] + both_NS[1]))
        return x_NCHW * gate_NC[..., None, None]


class SpatialAttention(nn.Module):
    """σ(convolution of [mean, maximum] over channels) (Woo et al., 2018, equation 3).

    NCHW in, the scaled NCHW out. The kernel, 7×7 in the paper, is an odd number of pixels.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the scaled input."""
        pooled = (x_NCHW.mean(1, keepdim=True), x_NCHW.amax(1, keepdim=True))
        return x_NCHW * torch.sigmoid(self.conv(torch.cat(pooled, 1)))


class CBAM(nn.Sequential):
    """Channel attention, then spatial attention (Woo et al., 2018, equation 1)."""

    def __init__(self, channels: int, squeezed: int, kernel: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, squeezed)
        self.spatial = SpatialAttention(kernel)


def _squeezed(channels: int) -> int:
    return max(MIN_SQUEEZED, channels // REDUCTION)


GATES: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "se": lambda channels: SqueezeExcite(channels, _squeezed(channels), activation=nn.ReLU),
    "eca": EfficientChannelAttention,
    "cbam": lambda channels: CBAM(channels, _squeezed(channels)),
}
"""What `gate` makes."""


def gate(name: str, channels: int) -> nn.Module:
    """A fresh gate: NCHW in, NCHW out.

    Args:
        name: one of `GATES`.
        channels: C.

    Raises:
        ValueError: for an unknown name.
    """
    return choose("gate", name, GATES)(channels)
