"""ResNet-9: a shallow residual network for small images, made to train fast.

The shape is that of Page, "How to Train Your ResNet", 2018: a stem, three convolutions that each
halve the image, and residual blocks of two convolutions behind the first and the third. Ours
spends less: a quarter of the channels, and a stride where the original convolves first and pools
then. At 28 pixels that is 11.4 million multiplications an image and 0.41M parameters; twice the
`width`, four times as many.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .base import ZooModel, check_positive, check_rates, choose_stem
from .layers.conv import ConvNormAct, make_divisible, spatial_mean
from .registry import register
from .stages import Stage

_relu = partial(nn.ReLU, inplace=True)

VARIANTS = {"resnet9": (16, 32, 64, 128)}
"""Channels of the stem and of the three groups."""
RESIDUAL = (1, 3)
"""The groups that have a residual block."""


class Residual(nn.Module):
    """Two 3×3 convolutions, each normed and rectified, beside the identity. NCHW in, NCHW out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, activation=_relu)
        self.conv2 = ConvNormAct(channels, channels, activation=_relu)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the sum of input and residual."""
        return x_NCHW + self.conv2(self.conv1(x_NCHW))  # type: ignore[no-any-return]


class ResNet9(ZooModel):
    """The network: `stem`, `group1` … `group3`, and the linear layer `fc`.

    Args:
        channels: of the stem and of the three groups.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `small` (3×3 of stride 1), `imagenet` (7×7 of stride 2, then pooling), or `auto`,
            which takes `small` up to 64 pixels.
        width: multiplies all channels, which are then rounded to eights.
        dropout: rate before the classifier.
    """

    head_name = "fc"
    stem_name = "stem.0"

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        width: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)
        entry, *wide = (make_divisible(c * width) for c in channels)
        imagenet = choose_stem(stem, self.image_size) == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.stem = ConvNormAct(in_channels, entry, kernel=kernel, stride=stride, activation=_relu)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        for group, (before, after) in enumerate(zip((entry, *wide), wide, strict=False), 1):
            blocks: list[nn.Module] = [ConvNormAct(before, after, stride=2, activation=_relu)]
            blocks += [Residual(after)] if group in RESIDUAL else []
            self.add_module(f"group{group}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(wide[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0``, ``group1.1``, ``group2.0``, … and ``head``."""
        blocks = [
            Stage(f"group{group}.{number}", block, (block,))
            for group in (1, 2, 3)
            for number, block in enumerate(self.get_submodule(f"group{group}").children())
        ]
        head = Stage("head", self._classify, (self.fc,))
        return [Stage("stem", self._stem, (self.stem,)), *blocks, head]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.maxpool(self.stem(x_NCHW))  # type: ignore[no-any-return]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]


register("resnet9", partial(ResNet9, VARIANTS["resnet9"]))
