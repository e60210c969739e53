"""Inception-v2, also called BN-Inception.

Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", 2015, Figure 5 in the appendix: GoogLeNet with batch norm behind each
convolution, two 3×3 convolutions in place of each 5×5, one module more, average pooling in most
modules, and modules of stride 2 (3c and 4e) in place of pooling between groups. The first
convolution is separable, with eight depthwise filters a colour.

Neither torchvision nor timm has the network, so the names are our own and the parameters are
counted from the figure: 11.2M. The text of section 4.2 gives 13.6M, which the figure does not
add up to. Modules 4c and 4d project their pooling to 96 channels, with which they put out the 576
that the figure says; ports for Caffe and MXNet have 128, hence 608. Chosen here where the paper is
silent: no auxiliary heads, no dropout by default (section 4.2.1 removes it), padding of one at
each 3×3, the epsilon of 0.001 that Inception-v3 has, and the initialisation of He et al., 2015.

The small layout begins with a dense 3×3 convolution of stride 1, and leaves out the first two
poolings: 28 pixels then reach the modules as 28, as 224 do in the original.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.auxiliary import ConvNormRelu
from .layers.chain import chain
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage

_MULTIPLIER = 8
"""Depthwise filters a colour in the first convolution."""


@dataclass(frozen=True)
class Row:
    """Channels of a module's branches: a line of the paper's Figure 5."""

    one: int
    reduce_three: int
    three: int
    reduce_double: int
    double: int
    pool: int
    """Of the projection behind the pooling; 0 passes the pooled input through."""
    average: bool = True
    stride: int = 1


ROWS = {
    "3a": Row(64, 64, 64, 64, 96, 32),
    "3b": Row(64, 64, 96, 64, 96, 64),
    "3c": Row(0, 128, 160, 64, 96, 0, average=False, stride=2),
    "4a": Row(224, 64, 96, 96, 128, 128),
    "4b": Row(192, 96, 128, 96, 128, 128),
    "4c": Row(160, 128, 160, 128, 160, 96),
    "4d": Row(96, 128, 192, 160, 192, 96),
    "4e": Row(0, 128, 192, 192, 256, 0, average=False, stride=2),
    "5a": Row(352, 192, 320, 160, 224, 128),
    "5b": Row(352, 192, 320, 192, 224, 128, average=False),
}


class SeparableConv(nn.Module):
    """A depthwise 7×7 convolution of stride 2 (`conv`), a pointwise one, batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        wide = channels_in * _MULTIPLIER
        self.conv = nn.Conv2d(channels_in, wide, 7, 2, 3, groups=channels_in, bias=False)
        self.pointwise = ConvNormRelu(wide, channels_out)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output, half as high and wide."""
        return self.pointwise(self.conv(x_NCHW))  # type: ignore[no-any-return]


class Inception(nn.Module):
    """Branches of different reach, side by side. NCHW in, NCHW out, halved at stride 2.

    Attributes:
        channels: of the output.
    """

    def __init__(self, channels_in: int, row: Row, scale: Callable[[int], int]) -> None:
        super().__init__()
        three, double, stride = scale(row.three), scale(row.double), row.stride
        branches: list[nn.Module] = []
        if row.one:
            branches.append(ConvNormRelu(channels_in, scale(row.one)))
        reduced = scale(row.reduce_three)
        branches.append(
            nn.Sequential(
                ConvNormRelu(channels_in, reduced), ConvNormRelu(reduced, three, 3, stride=stride)
            )
        )
        reduced = scale(row.reduce_double)
        branches.append(
            nn.Sequential(
                ConvNormRelu(channels_in, reduced),
                ConvNormRelu(reduced, double, 3),
                ConvNormRelu(double, double, 3, stride=stride),
            )
        )
        pool: list[nn.Module] = [_pool(row)]
        if row.pool:
            pool.append(ConvNormRelu(channels_in, scale(row.pool)))
        self.branches = nn.ModuleList([*branches, nn.Sequential(*pool)])
        pooled = scale(row.pool) if row.pool else channels_in
        self.channels = (scale(row.one) if row.one else 0) + three + double + pooled

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the branches' outputs, one behind the other."""
        return torch.cat([branch(x_NCHW) for branch in self.branches], 1)


def _pool(row: Row) -> nn.Module:
    if row.average:
        return nn.AvgPool2d(3, row.stride, padding=1, count_include_pad=False)
    return nn.MaxPool2d(3, row.stride, padding=1)


class InceptionV2(ZooModel):
    """The network: three convolutions, ten modules and the linear layer `fc`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        width: multiplies the channels, which are then rounded to eights.
        dropout: rate before `fc`.
        stem: `imagenet`, `small` for the small layout, or `auto`: small up to 64 pixels.
    """

    head_name = "fc"
    stem_name = "conv1.conv"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: float = 1.0,
        dropout: float = 0.0,
        stem: str = "auto",
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)

        def scale(channels: int) -> int:
            return make_divisible(channels * width)

        small = choose_stem(stem, self.image_size) == "small"
        self.conv1 = (
            ConvNormRelu(in_channels, scale(64), 3)
            if small
            else SeparableConv(in_channels, scale(64))
        )
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = ConvNormRelu(scale(64), scale(64))
        self.conv3 = ConvNormRelu(scale(64), scale(192), 3)
        self.maxpool2 = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        channels = scale(192)
        for name, row in ROWS.items():
            module = Inception(channels, row, scale)
            self.add_module(f"inception{name}", module)
            channels = module.channels
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.init_head(self.fc)

    def init_head(self, layer: Head) -> None:
        """Initialises the last layer: small, so that fresh logits are."""
        nn.init.normal_(layer.weight, std=0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``inception3.0``, ``inception3.1``, … ``inception5.1`` and ``head``."""
        blocks = []
        for name in ROWS:
            block = self.get_submodule(f"inception{name}")
            number = "abcde".index(name[1])
            blocks.append(Stage(f"inception{name[0]}.{number}", block, (block,)))
        stem = Stage("stem", self._stem, (self.conv1, self.conv2, self.conv3))
        return [stem, *blocks, Stage("head", self._classify, (self.fc,))]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        layers = (self.conv1, self.maxpool1, self.conv2, self.conv3, self.maxpool2)
        return chain(layers, x_NCHW)

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]


# What section 4.2 says, and what the layers of Figure 5, which are ours, have.
FIGURE = "13.6M (figure 5: 11.2M)"
register("inception_v2", InceptionV2, Published("Ioffe and Szegedy, 2015", 11_188_288, "", FIGURE))
