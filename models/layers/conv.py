"""Convolution, batch norm and activation in one block, named as torchvision names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .activations import SiLU

_silu = partial(SiLU, inplace=True)

Norm = Callable[[int], nn.Module]
"""Makes a normalisation layer for a channel count."""


class ConvNormAct(nn.Sequential):
    """A convolution without bias (`0`), its norm (`1`) and, unless None, an activation (`2`).

    NCHW in, NCHW out; an odd kernel keeps the size at stride 1 and halves it, rounded up, at 2.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        norm: Norm = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        parts = [conv, norm(channels_out)]
        super().__init__(*parts, *([activation()] if activation else []))


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to the nearest multiple of `divisor`, but never down by more than a tenth.

    The rounding of MobileNet and EfficientNet; the smallest result is `divisor`.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def spatial_mean(x_NCHW: torch.Tensor) -> torch.Tensor:
    """Means over height and width: [N, C, H, W] to [N, C].

    The gradient of a sum is spread without a copy; that of `mean` is divided pixel by pixel. So a
    sum is divided where a gradient is wanted, but not in half precision, which it may exceed, and
    compilers, which fuse either, get to see the `mean`. In channels-last maps that has another
    flaw, a contiguous gradient: adding it to a channels-last one took 6 of the 9 ms that a
    squeeze-excite block needs (320 channels of 7×7, batch 128, bf16, one CPU thread); so there the
    mean is a product with a row of ones.
    """
    if x_NCHW.is_contiguous() or x_NCHW.dtype == torch.float16:
        whole = x_NCHW.dtype in (torch.float32, torch.float64)
        if x_NCHW.requires_grad and whole and not torch.compiler.is_compiling():
            return x_NCHW.sum((2, 3)) / (x_NCHW.shape[2] * x_NCHW.shape[3])
        return x_NCHW.mean((2, 3))
    x_NLC = x_NCHW.flatten(2).transpose(1, 2)
    ones_N1L = x_NLC.new_ones(x_NLC.shape[0], 1, x_NLC.shape[1])
    return torch.bmm(ones_N1L, x_NLC).squeeze(1) / x_NLC.shape[1]


class ChannelMap(nn.Conv2d):
    """A 1×1 convolution of maps that have one pixel, [N, C] in and out.

    What it computes is a linear layer, which takes about half of a convolution's time here (batch
    8, one CPU thread); what it owns is a convolution's, so that published weights load.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 1)

    def forward(self, x_NC: torch.Tensor) -> torch.Tensor:
        """Returns the mapped channels."""
        return F.linear(x_NC, self.weight.flatten(1), self.bias)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al., 2018).

    NCHW in, NCHW out. The names of its convolutions, `fc1` and `fc2`, are torchvision's.

    Args:
        channels: of input and output.
        squeezed: channels between the two convolutions.
        activation: between the two; the paper's is ReLU, EfficientNet's SiLU.
        gate: turns the second one's result into factors; MobileNetV3's is the hard sigmoid.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        activation: Callable[[], nn.Module] = _silu,
        gate: Callable[[torch.Tensor], torch.Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.fc1 = ChannelMap(channels, squeezed)
        self.activation = activation()
        self.fc2 = ChannelMap(squeezed, channels)
        self.gate = gate

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the scaled input."""
        hidden_NS = self.activation(self.fc1(spatial_mean(x_NCHW)))
        return x_NCHW * self.gate(self.fc2(hidden_NS))[:, :, None, None]
