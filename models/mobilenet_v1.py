"""MobileNet: a depthwise and a pointwise convolution in place of each dense one.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
2017. Table 1 gives the layout; `width` is the paper's α (section 3.3). Names, shapes and
initialisation are those of timm's `mobilenetv1_100`, whose rectifiers stop at 6, as in the authors'
published code; the paper's own are plain.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage

STEM = 32
"""Channels of the first convolution."""
VARIANTS = {"mobilenet_v1": ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))}
"""Channels, blocks and first stride of each group."""


class Separable(nn.Module):
    """A 3×3 convolution of each channel, then a 1×1 one across channels. NCHW in, NCHW out."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv_pw = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the filtered input; there is no shortcut."""
        y_NCHW = self.act(self.bn1(self.conv_dw(x_NCHW)))
        return self.act(self.bn2(self.conv_pw(y_NCHW)))  # type: ignore[no-any-return]


class MobileNetV1(ZooModel):
    """The network: `conv_stem`, `bn1`, five groups in `blocks`, and the linear `classifier`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` halves the image, `small` does not; `auto` takes `small` up to 64 pixels.
        width: multiplies all channels, which are then rounded to eights.
        dropout: rate before the classifier.
    """

    head_name = "classifier"
    stem_name = "conv_stem"

    def __init__(
        self,
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
        entry = make_divisible(STEM * width)
        stride = 2 if choose_stem(stem, self.image_size) == "imagenet" else 1
        self.conv_stem = nn.Conv2d(in_channels, entry, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(entry)
        self.act = nn.ReLU6(inplace=True)
        groups = []
        for channels, layers, stride in VARIANTS["mobilenet_v1"]:
            channels = make_divisible(channels * width)
            blocks = [Separable(entry, channels, stride)]
            blocks += [Separable(channels, channels, 1) for _ in range(1, layers)]
            groups.append(nn.Sequential(*blocks))
            entry = channels
        self.blocks = nn.Sequential(*groups)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(entry, num_classes)
        self.apply(_init)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` … ``group5.1`` and ``head``."""
        blocks = [
            Stage(f"group{g}.{b}", block, (block,))
            for g, group in enumerate(self.blocks, 1)
            for b, block in enumerate(group.children())
        ]
        stem = Stage("stem", self._stem, (self.conv_stem, self.bn1))
        return [stem, *blocks, Stage("head", self._classify, (self.classifier,))]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn1(self.conv_stem(x_NCHW)))  # type: ignore[no-any-return]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Initialises a classifier as timm does."""
        _init(layer)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        # PyTorch's own fan-out counts a depthwise filter once for every channel.
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


_published = Published("Howard et al., 2017", 4_231_976, "timm:mobilenetv1_100", "4.2M")
register("mobilenet_v1", MobileNetV1, _published)
