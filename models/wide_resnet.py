"""Wide residual networks: fewer layers, more channels.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016. Two networks have the name:

- `wide_resnet50_2` is ResNet-50 with twice the channels in its 3×3 convolutions (the paper's
  Table 8, "WRN-50-2-bottleneck"). Names and shapes are torchvision's.
- `wrn_28_10` is the network for images of 32 pixels (Table 1): 28 layers in three groups of four
  blocks, 10 times as wide as their common ancestor. It rectifies before it convolves (He et al.,
  "Identity Mappings in Deep Residual Networks", 2016), with dropout between a block's two
  convolutions (section 2.4; 0.3 in the paper). Its stem halves nothing; larger images work, at a
  cost that grows with their pixels. No library has it as a reference: the count is the paper's
  36.5M, with 10 classes.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .resnet import Bottleneck, ResNet, Variant
from .stages import Stage


class WideBottleneck(Bottleneck):
    """A bottleneck with twice the inner channels. NCHW in, NCHW out."""

    group_width = 128


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after a norm and a rectifier. NCHW in, NCHW out.

    Where the shapes change, a 1×1 convolution of the rectified input is the shortcut.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the sum of shortcut and residual."""
        y_NCHW = self.relu(self.bn1(x_NCHW))
        shortcut = x_NCHW if self.shortcut is None else self.shortcut(y_NCHW)
        y_NCHW = self.dropout(self.relu(self.bn2(self.conv1(y_NCHW))))
        return self.conv2(y_NCHW) + shortcut  # type: ignore[no-any-return]


class WRN(ZooModel):
    """WRN-28-10: `conv1`, `block1` … `block3`, the last norm `bn`, and the linear layer `fc`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        width: multiplies the channels of the groups, 160, 320 and 640, which are then rounded to
            eights.
        dropout: rate between the two convolutions of each block.
    """

    head_name = "fc"
    stem_name = "conv1"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        entry = 16
        for group, layers in enumerate(WRN_LAYERS, 1):
            channels = make_divisible(WRN_CHANNELS[group - 1] * width)
            blocks = [PreActBlock(entry, channels, 1 if group == 1 else 2, dropout)]
            blocks += [PreActBlock(channels, channels, 1, dropout) for _ in range(1, layers)]
            self.add_module(f"block{group}", nn.Sequential(*blocks))
            entry = channels
        self.bn = nn.BatchNorm2d(entry)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(entry, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.init_head(self.fc)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``block1.0`` … ``block3.3`` and ``head``."""
        blocks = [
            Stage(f"block{group}.{number}", block, (block,))
            for group in range(1, len(WRN_LAYERS) + 1)
            for number, block in enumerate(self.get_submodule(f"block{group}").children())
        ]
        head = Stage("head", self._classify, (self.bn, self.fc))
        return [Stage("stem", self.conv1, (self.conv1,)), *blocks, head]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(spatial_mean(self.relu(self.bn(x_NCHW))))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Starts a classifier's biases at zero, as the authors do."""
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


WRN_LAYERS = (4, 4, 4)
"""Blocks of each group: (28 - 4) / 6."""
WRN_CHANNELS = (160, 320, 640)
"""Channels of each group: 16, 32 and 64, times 10."""

VARIANTS = {"wide_resnet50_2": Variant(WideBottleneck, (3, 4, 6, 3))}
PAPER = "Zagoruyko and Komodakis, 2016"
for _name, _variant in VARIANTS.items():
    _published = Published(PAPER, 68_883_240, f"torchvision:{_name}", "68.9M")
    register(_name, partial(ResNet, _variant), _published)
# The network is for 10 or 100 classes; a classifier of 1,000 makes it this much larger.
register("wrn_28_10", WRN, Published(PAPER, 37_113_784, "", "36.5M (10 classes)", 32))
