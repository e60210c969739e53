"""MobileNetV2: blocks that widen, filter depthwise and narrow again, with narrow shortcuts.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018. Table 2 gives the
layout; the last convolution narrows with `width` only above 1 (section 6.1). Names, shapes,
rounding, dropout and initialisation are torchvision's.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.conv import ConvNormAct, make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage

_relu6 = partial(nn.ReLU6, inplace=True)


class Row(NamedTuple):
    """A group of equal blocks: a line of the paper's Table 2."""

    expand: int
    channels: int
    layers: int
    stride: int


VARIANTS = {
    "mobilenet_v2": (
        Row(1, 16, 1, 1),
        Row(6, 24, 2, 2),
        Row(6, 32, 3, 2),
        Row(6, 64, 4, 2),
        Row(6, 96, 3, 1),
        Row(6, 160, 3, 2),
        Row(6, 320, 1, 1),
    )
}
STEM, LAST = 32, 1280
"""Channels of the first and of the last convolution."""


class InvertedResidual(nn.Module):
    """Widens, filters each channel, narrows. NCHW in, NCHW out.

    The input is added where the shapes allow it.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels_in * expand
        widen = [ConvNormAct(channels_in, wide, kernel=1, activation=_relu6)]
        self.conv = nn.Sequential(
            *(widen if expand != 1 else ()),
            ConvNormAct(wide, wide, stride=stride, groups=wide, activation=_relu6),
            nn.Conv2d(wide, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        y_NCHW: torch.Tensor = self.conv(x_NCHW)
        return y_NCHW + x_NCHW if self.residual else y_NCHW


class MobileNetV2(ZooModel):
    """The network: `features` (stem, blocks, last convolution) and `classifier`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` halves the image, `small` does not; `auto` takes `small` up to 64 pixels.
        width: multiplies channels, which are then rounded to eights; the last convolution's only
            when it is above 1.
        dropout: rate before the classifier.
    """

    head_name = "classifier.1"
    stem_name = "features.0.0"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        width: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)
        self.rows = VARIANTS["mobilenet_v2"]
        entry, end = (make_divisible(c * width) for c in (STEM, self.rows[-1].channels))
        last = make_divisible(LAST * max(1.0, width))
        stride = 2 if choose_stem(stem, self.image_size) == "imagenet" else 1
        self.features = nn.Sequential(
            ConvNormAct(in_channels, entry, stride=stride, activation=_relu6),
            *_blocks(entry, self.rows, width),
            ConvNormAct(end, last, kernel=1, activation=_relu6),
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self.apply(initialise)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` … ``group7.0``, ``last`` and ``head``."""
        stem, *blocks, last = self.features
        places = [(g, b) for g, row in enumerate(self.rows, 1) for b in range(row.layers)]
        head = Stage("head", self._classify, (self.classifier,))
        return [
            Stage("stem", stem, (stem,)),
            *(
                Stage(f"group{group}.{number}", block, (block,))
                for (group, number), block in zip(places, blocks, strict=True)
            ),
            Stage("last", last, (last,)),
            head,
        ]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(spatial_mean(x_NCHW))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Initialises a classifier as torchvision does."""
        initialise(layer)


def _blocks(channels: int, rows: tuple[Row, ...], width: float) -> Iterator[nn.Module]:
    for row in rows:
        wide = make_divisible(row.channels * width)
        for layer in range(row.layers):
            stride = row.stride if layer == 0 else 1
            yield InvertedResidual(channels, wide, stride, row.expand)
            channels = wide


def initialise(module: nn.Module) -> None:
    """Gives a layer the weights that torchvision's MobileNets start with."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


_published = Published("Sandler et al., 2018", 3_504_872, "torchvision:mobilenet_v2", "3.4M")
register("mobilenet_v2", MobileNetV2, _published)
