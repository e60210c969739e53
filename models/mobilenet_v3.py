"""MobileNetV3: searched inverted residuals with squeeze-excite and hard swish.

Howard et al., "Searching for MobileNetV3", 2019. Tables 1 and 2 give the layouts, section 5.2 the
hard swish, section 5.3 the squeeze-excite blocks, which narrow to a quarter of the widened
channels. Names, shapes, rounding, norms, dropout and initialisation are torchvision's; so is the
hard sigmoid that gates.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.activations import Hardswish
from .layers.conv import ConvNormAct, SqueezeExcite, make_divisible, spatial_mean
from .mobilenet_v2 import initialise
from .registry import Published, register
from .stages import Stage

_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
_relu = partial(nn.ReLU, inplace=True)
_hard_swish = partial(Hardswish, inplace=True)


class Row(NamedTuple):
    """A block: a line of the paper's Tables 1 and 2."""

    kernel: int
    wide: int
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int

    def scaled(self, width: float) -> Row:
        """The row with its channels multiplied and rounded to eights."""
        wide, channels = (make_divisible(c * width) for c in (self.wide, self.channels))
        return self._replace(wide=wide, channels=channels)


class Layout(NamedTuple):
    """A network before it is scaled."""

    rows: tuple[Row, ...]
    hidden: int
    """Channels between the classifier's two layers."""


SMALL = Layout(
    (
        Row(3, 16, 16, True, False, 2),
        Row(3, 72, 24, False, False, 2),
        Row(3, 88, 24, False, False, 1),
        Row(5, 96, 40, True, True, 2),
        Row(5, 240, 40, True, True, 1),
        Row(5, 240, 40, True, True, 1),
        Row(5, 120, 48, True, True, 1),
        Row(5, 144, 48, True, True, 1),
        Row(5, 288, 96, True, True, 2),
        Row(5, 576, 96, True, True, 1),
        Row(5, 576, 96, True, True, 1),
    ),
    hidden=1024,
)
LARGE = Layout(
    (
        Row(3, 16, 16, False, False, 1),
        Row(3, 64, 24, False, False, 2),
        Row(3, 72, 24, False, False, 1),
        Row(5, 72, 40, True, False, 2),
        Row(5, 120, 40, True, False, 1),
        Row(5, 120, 40, True, False, 1),
        Row(3, 240, 80, False, True, 2),
        Row(3, 200, 80, False, True, 1),
        Row(3, 184, 80, False, True, 1),
        Row(3, 184, 80, False, True, 1),
        Row(3, 480, 112, True, True, 1),
        Row(3, 672, 112, True, True, 1),
        Row(5, 672, 160, True, True, 2),
        Row(5, 960, 160, True, True, 1),
        Row(5, 960, 160, True, True, 1),
    ),
    hidden=1280,
)
STEM = 16
"""Channels of the first convolution."""


class InvertedResidual(nn.Module):
    """Widens, filters each channel, squeezes where the row says so, narrows. NCHW in, NCHW out.

    The input is added where the shapes allow it.
    """

    def __init__(self, channels_in: int, row: Row) -> None:
        super().__init__()
        self.block = nn.Sequential(*_layers(channels_in, row))
        self.residual = row.stride == 1 and channels_in == row.channels

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        y_NCHW: torch.Tensor = self.block(x_NCHW)
        if self.residual:
            y_NCHW += x_NCHW  # in place: the norm needs its result no more
        return y_NCHW


def _layers(channels_in: int, row: Row) -> Iterator[nn.Module]:
    make = partial(ConvNormAct, norm=_norm, activation=_hard_swish if row.hard_swish else _relu)
    if row.wide != channels_in:
        yield make(channels_in, row.wide, kernel=1)
    yield make(row.wide, row.wide, kernel=row.kernel, stride=row.stride, groups=row.wide)
    if row.squeeze:
        squeezed = make_divisible(row.wide // 4)
        yield SqueezeExcite(row.wide, squeezed, activation=_relu, gate=F.hardsigmoid)
    yield make(row.wide, row.channels, kernel=1, activation=None)


class MobileNetV3(ZooModel):
    """The network: `features` (stem, blocks, last convolution) and `classifier`.

    Args:
        layout: the network before it is scaled.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` halves the image, `small` does not; `auto` takes `small` up to 64 pixels.
        width: multiplies all channels, which are then rounded to eights.
        dropout: rate before the classifier.
    """

    head_name = "classifier.3"
    stem_name = "features.0.0"

    def __init__(
        self,
        layout: Layout,
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
        rows = [row.scaled(width) for row in layout.rows]
        self.strides = [row.stride for row in rows]
        entry, end = make_divisible(STEM * width), rows[-1].channels
        hidden = make_divisible(layout.hidden * width)
        stride = 2 if choose_stem(stem, self.image_size) == "imagenet" else 1
        make = partial(ConvNormAct, norm=_norm, activation=_hard_swish)
        inputs = [entry, *(row.channels for row in rows[:-1])]
        self.features = nn.Sequential(
            make(in_channels, entry, stride=stride),
            *(InvertedResidual(c, row) for c, row in zip(inputs, rows, strict=True)),
            make(end, 6 * end, kernel=1),
        )
        self.classifier = nn.Sequential(
            nn.Linear(6 * end, hidden),
            _hard_swish(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        self.apply(initialise)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0``, …, ``last`` and ``head``; a stride starts a group."""
        stem, *blocks, last = self.features
        stages, group, number = [Stage("stem", stem, (stem,))], 1, 0
        for block, stride in zip(blocks, self.strides, strict=True):
            if stride == 2 and len(stages) > 1:
                group, number = group + 1, 0
            stages.append(Stage(f"group{group}.{number}", block, (block,)))
            number += 1
        head = Stage("head", self._classify, (self.classifier,))
        return [*stages, Stage("last", last, (last,)), head]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(spatial_mean(x_NCHW))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Initialises a classifier as torchvision does."""
        initialise(layer)


VARIANTS = {"mobilenet_v3_small": SMALL, "mobilenet_v3_large": LARGE}
# Parameters of the reference, and as the paper's Tables 3 and 4 have them.
PARAMETERS = {
    "mobilenet_v3_small": (2_542_856, "2.5M"),
    "mobilenet_v3_large": (5_483_032, "5.4M"),
}
for _name, _layout in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published("Howard et al., 2019", _count, f"torchvision:{_name}", _figure)
    register(_name, partial(MobileNetV3, _layout), _published)
