"""AlexNet.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, in the
form of torchvision, whose names and shapes these are: the single column of Krizhevsky, "One weird
trick for parallelizing convolutional neural networks", 2014, with 64 and 192 channels in the
first layers, no grouped convolutions, no local response normalisation, and dropout before the
hidden layers. Its initialisation is PyTorch's.

The small layout, for images of 15 pixels and up, begins with a 3×3 convolution of stride 1 and
gives the hidden layers what the last pooling leaves (2×2 pixels of 28) instead of 6×6. Its
weights start as in He et al., 2015: PyTorch's shrink the signal in each layer, and nothing here
scales it back.

Axes: N batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.chain import chain, check_side
from .layers.conv import make_divisible
from .registry import Published, register
from .stages import Stage


class AlexNet(ZooModel):
    """The network: `features`, pooling to a fixed size, and `classifier`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels; at least 63, or 15 with the
            small stem.
        width: multiplies the channels of the convolutions, which are then rounded to eights.
        hidden: units of both hidden layers of the classifier.
        dropout: rate before each hidden layer of the classifier.
        stem: `imagenet`, `small` for the small layout, or `auto`: small up to 64 pixels.
    """

    head_name = "classifier.6"
    stem_name = "features.0"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: float = 1.0,
        hidden: int = 4096,
        dropout: float = 0.5,
        stem: str = "auto",
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width, hidden=hidden)
        check_rates(dropout=dropout)
        self._small = choose_stem(stem, self.image_size) == "small"
        if self._small:
            check_side("alexnet", self.image_size, 15, "resize or pad the images")
        else:
            check_side("alexnet", self.image_size, 63, "resize them, or choose stem: small")
        c1, c2, c3, c4, c5 = (make_divisible(c * width) for c in (64, 192, 384, 256, 256))
        kernel, stride, padding = (3, 1, 1) if self._small else (11, 4, 2)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, kernel, stride, padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        height, breadth = (_left(side) for side in self.image_size) if self._small else (6, 6)
        self.avgpool = nn.AdaptiveAvgPool2d((height, breadth))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(c5 * height * breadth, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        if self._small:
            self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.init_head(self.head_layer)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``conv.2`` … ``conv.5``, ``fc.6``, ``fc.7`` and ``head``."""
        layers, last = list(self.features), list(self.classifier)
        return [
            _stage("stem", layers[:3]),
            _stage("conv.2", layers[3:6]),
            _stage("conv.3", layers[6:8]),
            _stage("conv.4", layers[8:10]),
            _stage("conv.5", layers[10:]),
            Stage("fc.6", self._flatten, (self.classifier[1],)),
            _stage("fc.7", last[3:6]),
            _stage("head", last[6:]),
        ]

    def _flatten(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x_NF = self.avgpool(x_NCHW).flatten(1)
        return chain(list(self.classifier)[:3], x_NF)

    def init_head(self, layer: Head) -> None:
        """Initialises the last layer: small in the small layout, else as PyTorch does."""
        if self._small:
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _stage(name: str, layers: list[nn.Module]) -> Stage:
    return Stage(name, partial(chain, layers), tuple(layers))


def _left(side: int) -> int:
    """What three poolings of 3×3 with stride 2 leave of a side."""
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return min(side, 6)


register(
    "alexnet",
    AlexNet,
    Published("Krizhevsky et al., 2012", 61_100_840, "torchvision:alexnet", "60M"),
)
