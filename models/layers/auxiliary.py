"""What GoogLeNet and Inception-v2 and v3 share, named as torchvision names it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..stages import State
from .chain import Layer, chain

IMAGENET_NORM = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and standard deviation of ImageNet's red, green and blue, of values in [0, 1]."""


class ConvNormRelu(nn.Module):
    """A convolution without bias (`conv`), batch norm (`bn`) and ReLU. NCHW in, NCHW out.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: side, or (height, width).
        stride: of the convolution.
        padding: on each side; None keeps the size of the image at stride 1 with odd kernels.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = (sides[0] // 2, sides[1] // 2) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(channels_in, channels_out, sides, stride, pads, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return self.relu(self.bn(self.conv(x_NCHW)))  # type: ignore[no-any-return]


def advance(layers: Sequence[Layer], auxiliary: nn.Module | None, state: State) -> State:
    """A stage of a network with auxiliary heads, whose logits ride along.

    Args:
        layers: applied to the features, one after another.
        auxiliary: the head that sees their result, if one does; it is silent in evaluation mode.
        state: features [N, C, H, W]; or a flat tuple of them and earlier heads' logits.

    Returns:
        What `state` is: features first, then the latest head's logits, then the earlier ones'.
    """
    x, *logits = (state,) if isinstance(state, torch.Tensor) else state
    x = chain(layers, x)
    if auxiliary is not None and auxiliary.training:
        logits = [auxiliary(x), *logits]
    return (x, *logits) if logits else x


def half_range(x_NCHW: torch.Tensor) -> torch.Tensor:
    """Images normalised with ImageNet's means and deviations to ones normalised with 0.5 and 0.5.

    The published weights of GoogLeNet and Inception-v3 come from TensorFlow and were trained on
    values from -1 to 1.
    """
    planes = [
        x_NCHW[:, channel] * (deviation / 0.5) + (mean - 0.5) / 0.5
        for channel, (mean, deviation) in enumerate(IMAGENET_NORM)
    ]
    return torch.stack(planes, 1)


def check_half_range(transform_input: bool, in_channels: int) -> None:
    """Refuses to change the normalisation of images that have not three channels.

    Raises:
        ValueError: saying what to do instead.
    """
    if transform_input and in_channels != len(IMAGENET_NORM):
        raise ValueError(
            "transform_input expects the three channels of images normalised as ImageNet's, but "
            f"got in_channels {in_channels}; leave it false, and normalise the data with 0.5, 0.5"
        )
