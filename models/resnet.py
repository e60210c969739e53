"""Residual networks.

He et al., "Deep Residual Learning for Image Recognition", 2016, in the form of torchvision, whose
names and shapes these are: a bottleneck halves the image in its 3×3 convolution, not its first.
The residual branches end in a norm whose scale starts at zero (Goyal et al., 2017, section 5.1),
so that a fresh block is the identity.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from .base import ZooModel, check_positive, check_rates, choose_stem
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage


class _Residual(nn.Module):
    """What both blocks share: the shortcut, and where the norm stands that may start at zero."""

    expansion: ClassVar[int]
    last_norm: ClassVar[str]
    relu: nn.Module

    downsample: nn.Module | None

    def branch(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The residual."""
        raise NotImplementedError

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the rectified sum of shortcut and residual."""
        shortcut = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        y_NCHW = self.branch(x_NCHW)
        y_NCHW += shortcut  # in place: what a branch ends in needs its result no more
        return self.relu(y_NCHW)  # type: ignore[no-any-return]


class BasicBlock(_Residual):
    """Two 3×3 convolutions. NCHW in, NCHW out."""

    expansion = 1
    last_norm = "bn2"

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, channels, stride)

    def branch(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The residual."""
        y_NCHW = self.relu(self.bn1(self.conv1(x_NCHW)))
        return self.bn2(self.conv2(y_NCHW))  # type: ignore[no-any-return]


class Bottleneck(_Residual):
    """1×1, 3×3 and 1×1 convolutions; four times `channels` go out, whatever the 3×3 one has.

    Attributes:
        groups: independent parts of the 3×3 convolution, ResNeXt's cardinality.
        group_width: channels of a part in the first group of blocks, which has 64 `channels`;
            in proportion in the others.
    """

    expansion = 4
    last_norm = "bn3"
    groups: ClassVar[int] = 1
    group_width: ClassVar[int] = 64

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        inner = max(1, channels * self.group_width // 64) * self.groups
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=self.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def branch(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The residual."""
        y_NCHW = self.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.relu(self.bn2(self.conv2(y_NCHW)))
        return self.bn3(self.conv3(y_NCHW))  # type: ignore[no-any-return]


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels_in == channels_out:
        return None
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


@dataclass(frozen=True)
class Variant:
    """A column of the paper's Table 1."""

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    """Blocks in each of the four groups."""


class ResNet(ZooModel):
    """The network: stem, `layer1` … `layer4`, and the linear layer `fc`.

    Args:
        variant: block and depths.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (7×7 of stride 2, then pooling), `small` (3×3 of stride 1), or `auto`,
            which takes `small` up to 64 pixels.
        width: multiplies the channels of stem and groups, which are then rounded to eights.
        dropout: rate before the classifier.
        zero_init: let each block start as the identity.
    """

    head_name = "fc"
    stem_name = "conv1"

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        width: float = 1.0,
        dropout: float = 0.0,
        zero_init: bool = True,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)
        inner = [make_divisible(channels * width) for channels in (64, 128, 256, 512)]
        self._build_stem(choose_stem(stem, self.image_size), in_channels, inner[0])
        outer = [channels * variant.block.expansion for channels in inner]
        for group, layers in enumerate(variant.layers):
            entry = inner[0] if group == 0 else outer[group - 1]
            blocks = _blocks(variant.block, entry, inner[group], layers, 1 if group == 0 else 2)
            self.add_module(f"layer{group + 1}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(outer[-1], num_classes)
        self._initialise(zero_init)

    def _build_stem(self, stem: str, in_channels: int, channels: int) -> None:
        imagenet = stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()

    def _initialise(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Residual) and zero_init:
                nn.init.zeros_(module.get_submodule(module.last_norm).weight)  # type: ignore[arg-type]

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``layer1.0`` … ``layer4.n`` and ``head``."""
        groups = [(f"layer{n}", self.get_submodule(f"layer{n}")) for n in range(1, 5)]
        blocks = [
            Stage(f"{name}.{number}", block, (block,))
            for name, group in groups
            for number, block in enumerate(group.children())
        ]
        stem = Stage("stem", self._stem, (self.conv1, self.bn1))
        return [stem, *blocks, Stage("head", self._classify, (self.fc,))]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        # The largest is rectified: the same as the largest of the rectified, for a quarter as many.
        return self.relu(self.maxpool(self.bn1(self.conv1(x_NCHW))))  # type: ignore[no-any-return]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]


def _blocks(
    block: type[BasicBlock] | type[Bottleneck],
    entry: int,
    channels: int,
    layers: int,
    stride: int,
) -> Iterator[nn.Module]:
    yield block(entry, channels, stride)
    for _ in range(1, layers):
        yield block(channels * block.expansion, channels, 1)


VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3)),
}
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
for _name, _variant in VARIANTS.items():
    _published = Published("He et al., 2016", PARAMETERS[_name], f"torchvision:{_name}")
    register(_name, partial(ResNet, _variant), _published)
