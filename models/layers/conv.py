"""Convolution, batch norm and activation in one block, named as torchvision names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

_silu = partial(nn.SiLU, inplace=True)

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

    A product with a row of ones, because the gradient then keeps the memory format: that of
    `mean` is contiguous, and adding it to a channels-last one took 6 of the 9 ms that a
    squeeze-excite block needs (320 channels of 7×7, batch 128, bf16, one CPU thread).
    """
    x_NLC = x_NCHW.flatten(2).transpose(1, 2)
    ones_N1L = x_NLC.new_ones(x_NLC.shape[0], 1, x_NLC.shape[1])
    return torch.bmm(ones_N1L, x_NLC).squeeze(1) / x_NLC.shape[1]


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
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the scaled input."""
        mean_NC11 = spatial_mean(x_NCHW)[:, :, None, None]
        return x_NCHW * self.gate(self.fc2(self.activation(self.fc1(mean_NC11))))
