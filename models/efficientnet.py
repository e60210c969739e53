"""EfficientNet: networks scaled in depth, width and resolution together.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019.
Names, shapes, rounding, drop rates and initialisation are torchvision's, so that its weights
load as they are. Tables 1 and 2 of the paper give B0 and the scaling; `efficientnet` scales B0 by
any coefficient, negative ones too.

`efficientnet_small` is for images of about 28 or 32 pixels, which B0's five halvings shrink to
one pixel. It halves them twice, with the fused blocks of EfficientNetV2 (Tan and Le, 2021) where
channels are few, because a depthwise convolution there costs more time than the dense one it
replaces. On one core of an AMD EPYC (bf16, channels last) it trains 1,400 to 1,700 images of 28
pixels a second, about as many as B0's first four stages at half width, and is better after two
epochs of Fashion-MNIST: 89.4 % against 88.1 % of the test images (one run of each).

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.activations import SiLU
from .layers.conv import ConvNormAct, Norm, SqueezeExcite, make_divisible, spatial_mean
from .layers.drop_path import DropPath
from .registry import Published, register
from .stages import Stage

_silu = partial(SiLU, inplace=True)


@dataclass(frozen=True)
class Row:
    """A group of equal blocks, before scaling: a line of the paper's Table 1."""

    expand: int
    kernel: int
    stride: int
    channels: int
    layers: int
    fused: bool = False
    """One dense convolution instead of a pointwise and a depthwise one; no squeeze-excite."""

    def scaled(self, width: float, depth: float) -> Row:
        """The row with channels and layers multiplied, and rounded to eights and up."""
        channels = make_divisible(self.channels * width)
        return replace(self, channels=channels, layers=math.ceil(self.layers * depth))


@dataclass(frozen=True)
class Layout:
    """Everything of a network but its scaling."""

    stem: int
    """Channels of the stem."""
    rows: tuple[Row, ...]
    last: int = 4
    """Multiplies the last row's channels in the last convolution."""


B0 = Layout(
    stem=32,
    rows=(
        Row(1, 3, 1, 16, 1),
        Row(6, 3, 2, 24, 2),
        Row(6, 5, 2, 40, 2),
        Row(6, 3, 2, 80, 3),
        Row(6, 5, 1, 112, 3),
        Row(6, 5, 2, 192, 4),
        Row(6, 3, 1, 320, 1),
    ),
)

SMALL = Layout(
    stem=16,
    rows=(
        Row(4, 3, 2, 32, 1, fused=True),
        Row(4, 3, 2, 48, 2, fused=True),
        Row(4, 3, 1, 80, 1),
    ),
)


class MBConv(nn.Module):
    """An inverted residual: widen, filter, squeeze-excite, narrow (Sandler et al., 2018).

    NCHW in, NCHW out. The input is added where the shapes allow it.
    """

    def __init__(self, channels_in: int, row: Row, norm: Norm, drop_path: float) -> None:
        super().__init__()
        wide = make_divisible(channels_in * row.expand)
        make = _fused if row.fused else _depthwise
        self.block = nn.Sequential(*make(channels_in, wide, row, norm))
        self.residual = row.stride == 1 and channels_in == row.channels
        self.stochastic_depth = DropPath(drop_path)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        y_NCHW: torch.Tensor = self.block(x_NCHW)
        if self.residual:
            y_NCHW = self.stochastic_depth(y_NCHW)
            y_NCHW += x_NCHW  # in place: neither a norm nor a product needs its result again
        return y_NCHW


def _depthwise(channels_in: int, wide: int, row: Row, norm: Norm) -> Iterator[nn.Module]:
    if wide != channels_in:
        yield ConvNormAct(channels_in, wide, kernel=1, norm=norm, activation=_silu)
    yield ConvNormAct(
        wide, wide, kernel=row.kernel, stride=row.stride, groups=wide, norm=norm, activation=_silu
    )
    yield SqueezeExcite(wide, max(1, channels_in // 4))
    yield ConvNormAct(wide, row.channels, kernel=1, norm=norm, activation=None)


def _fused(channels_in: int, wide: int, row: Row, norm: Norm) -> Iterator[nn.Module]:
    first = wide if wide != channels_in else row.channels
    yield ConvNormAct(
        channels_in, first, kernel=row.kernel, stride=row.stride, norm=norm, activation=_silu
    )
    if wide != channels_in:
        yield ConvNormAct(wide, row.channels, kernel=1, norm=norm, activation=None)


@dataclass(frozen=True)
class Variant:
    """Multipliers of B0, and what was tuned with them."""

    width: float
    depth: float
    resolution: int
    dropout: float
    drop_path: float = 0.2
    late_norm: bool = False
    """B5 and above average batch statistics more slowly, with a larger epsilon."""

    @property
    def norm(self) -> Norm:
        """Makes the variant's batch norms."""
        return (
            partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01) if self.late_norm else nn.BatchNorm2d
        )


class EfficientNet(ZooModel):
    """The network: `features` (stem, groups of blocks, last convolution) and `classifier`.

    Args:
        layout: the network before scaling.
        variant: multipliers, and what was tuned with them.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        width: multiplies channels, which are then rounded to eights; instead of the variant's.
        depth: multiplies the blocks of each group, rounded up; instead of the variant's.
        dropout: rate before the classifier; instead of the variant's.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the
            first; instead of the variant's.
        stem: `imagenet` halves the image, `small` does not; `auto` takes `small` up to 64 pixels.

    Attributes:
        resolution: the image side, in pixels, that the variant was made for.
    """

    head_name = "classifier.1"
    stem_name = "features.0.0"

    def __init__(
        self,
        layout: Layout,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: float | None = None,
        depth: float | None = None,
        dropout: float | None = None,
        drop_path: float | None = None,
        stem: str = "auto",
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        width = variant.width if width is None else width
        depth = variant.depth if depth is None else depth
        dropout = variant.dropout if dropout is None else dropout
        drop_path = variant.drop_path if drop_path is None else drop_path
        check_positive(width=width, depth=depth)
        check_rates(dropout=dropout, drop_path=drop_path)
        self.resolution = variant.resolution
        rows = [row.scaled(width, depth) for row in layout.rows]
        entry, end = make_divisible(layout.stem * width), rows[-1].channels
        stride = 2 if choose_stem(stem, self.image_size) == "imagenet" else 1
        self.features = nn.Sequential(
            ConvNormAct(in_channels, entry, stride=stride, norm=variant.norm, activation=_silu),
            *_groups(entry, rows, variant.norm, drop_path),
            ConvNormAct(end, layout.last * end, kernel=1, norm=variant.norm, activation=_silu),
        )
        linear = nn.Linear(layout.last * end, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear)
        self.apply(_init)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` … ``group7.0``, ``last`` and ``head``."""
        stem, *groups, last = self.features
        blocks = [
            Stage(f"group{g}.{b}", block, (block,))
            for g, group in enumerate(groups, 1)
            for b, block in enumerate(group.children())
        ]
        head = Stage("head", self._classify, (self.classifier,))
        return [Stage("stem", stem, (stem,)), *blocks, Stage("last", last, (last,)), head]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(spatial_mean(x_NCHW))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Initialises a classifier as torchvision does."""
        _init(layer)


def _groups(
    channels: int, rows: Sequence[Row], norm: Norm, drop_path: float
) -> Iterator[nn.Sequential]:
    total, made = sum(row.layers for row in rows), 0
    for row in rows:
        blocks: list[nn.Module] = []
        for layer in range(row.layers):
            stride = row.stride if layer == 0 else 1
            rate = drop_path * made / total
            blocks.append(MBConv(channels, replace(row, stride=stride), norm, rate))
            channels, made = row.channels, made + 1
        yield nn.Sequential(*blocks)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


VARIANTS = {
    "efficientnet_b0": Variant(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": Variant(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": Variant(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": Variant(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": Variant(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": Variant(1.6, 2.2, 456, 0.4, late_norm=True),
    "efficientnet_b6": Variant(1.8, 2.6, 528, 0.5, late_norm=True),
    "efficientnet_b7": Variant(2.0, 3.1, 600, 0.5, late_norm=True),
}


def compound(phi: float) -> Variant:
    """B0 scaled by a compound coefficient: depth 1.2^φ, width 1.1^φ, resolution 1.15^φ.

    Equation 3 of the paper with the values found for B0. The published variants round these by
    hand, and raise dropout from 0.2 to 0.5 as φ goes to 7; here it follows a line.

    Raises:
        ValueError: if φ is outside [-20, 20], where the network would be absurd.
    """
    if not -20 <= phi <= 20:
        raise ValueError(f"phi must be in [-20, 20], but got {phi!r}; B0 is 0, B7 about 7")
    dropout = min(max(0.2 + 0.3 * phi / 7, 0.0), 0.5)
    return Variant(1.1**phi, 1.2**phi, round(224 * 1.15**phi), dropout, late_norm=phi >= 5)


def build_scaled(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int],
    phi: float = 0.0,
    width: float | None = None,
    depth: float | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    stem: str = "auto",
) -> EfficientNet:
    """Builds B0 scaled by `phi`; the other options replace what follows from it."""
    return EfficientNet(
        B0,
        compound(phi),
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        width=width,
        depth=depth,
        dropout=dropout,
        drop_path=drop_path,
        stem=stem,
    )


SMALL_VARIANT = Variant(1.0, 1.0, 28, 0.1, drop_path=0.0)

# Parameters of the reference, and as the paper's Table 2 has them.
PARAMETERS = {
    "efficientnet_b0": (5_288_548, "5.3M"),
    "efficientnet_b1": (7_794_184, "7.8M"),
    "efficientnet_b2": (9_109_994, "9.2M"),
    "efficientnet_b3": (12_233_232, "12M"),
    "efficientnet_b4": (19_341_616, "19M"),
    "efficientnet_b5": (30_389_784, "30M"),
    "efficientnet_b6": (43_040_704, "43M"),
    "efficientnet_b7": (66_347_960, "66M"),
}
for _name, _variant in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published(
        "Tan and Le, 2019", _count, f"torchvision:{_name}", _figure, _variant.resolution
    )
    register(_name, partial(EfficientNet, B0, _variant), _published)
register("efficientnet", build_scaled)
register("efficientnet_small", partial(EfficientNet, SMALL, SMALL_VARIANT))
