"""VGG: 3×3 convolutions and nothing else, many of them.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
2015, columns A, B, D and E of Table 1, with names, shapes and initialisation of torchvision.
`_bn` puts a batch norm behind each convolution (Ioffe and Szegedy, 2015), which the paper did not
have yet.

The small layout, for images of 16 pixels and up, leaves out the first of the five poolings and
gives the hidden layers what the last one leaves (1×1 pixel of 28) instead of 7×7. Its weights
start with the variance of He et al., 2015, that keeps the scale forwards: torchvision's keeps it
backwards, which without norms leaves a twentieth of a grey image's signal behind VGG-11, and draws
hidden layers with a deviation of 0.01, which suits 25,088 inputs but not 512.

Axes: N batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.chain import chain, check_side
from .layers.conv import make_divisible
from .registry import Published, register
from .stages import Stage

CHANNELS = (64, 128, 256, 512, 512)
"""Of the five groups."""


class VGG(ZooModel):
    """The network: `features`, pooling to a fixed size, and `classifier`.

    Args:
        depths: convolutions of each of the five groups.
        norm: a batch norm behind each convolution.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels; at least 32, or 16 with the
            small stem.
        width: multiplies the channels of the convolutions, which are then rounded to eights.
        hidden: units of both hidden layers of the classifier.
        dropout: rate behind each hidden layer of the classifier.
        stem: `imagenet`, `small` for the small layout, or `auto`: small up to 64 pixels.
    """

    head_name = "classifier.6"
    stem_name = "features.0"

    def __init__(
        self,
        depths: tuple[int, ...],
        norm: bool,
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
        small = choose_stem(stem, self.image_size) == "small"
        if small:
            check_side("vgg", self.image_size, 16, "resize or pad the images")
        else:
            check_side("vgg", self.image_size, 32, "resize them, or choose stem: small")
        channels = [make_divisible(c * width) for c in CHANNELS]
        self._cuts: list[tuple[str, int, int]] = []
        self.features = self._convolutions(in_channels, channels, depths, norm, small)
        pooled = [min(side // 16, 7) for side in self.image_size] if small else [7, 7]
        self.avgpool = nn.AdaptiveAvgPool2d((pooled[0], pooled[1]))
        self.classifier = nn.Sequential(
            nn.Linear(channels[-1] * pooled[0] * pooled[1], hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        self._initialise(small)

    def _convolutions(
        self, entry: int, channels: list[int], depths: tuple[int, ...], norm: bool, small: bool
    ) -> nn.Sequential:
        """The five groups in one row, as torchvision counts them; notes where blocks begin."""
        layers: list[nn.Module] = []
        for group, (depth, width) in enumerate(zip(depths, channels, strict=True), 1):
            for number in range(depth):
                start = len(layers)
                layers.append(nn.Conv2d(entry, width, 3, padding=1))
                if norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                if number == depth - 1:
                    # An identity holds the place, so that the numbers in names stay the same.
                    layers.append(nn.Identity() if small and group == 1 else nn.MaxPool2d(2, 2))
                if group > 1:
                    self._cuts.append((f"group{group}.{number}", start, len(layers)))
                entry = width
        return nn.Sequential(*layers)

    def _initialise(self, small: bool) -> None:
        mode: Literal["fan_in", "fan_out"] = "fan_in" if small else "fan_out"
        for module in self.modules():
            if isinstance(module, nn.Conv2d) or (small and isinstance(module, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                _zero(module)
            elif isinstance(module, nn.Linear):
                self.init_head(module)
        self.init_head(self.head_layer)

    def init_head(self, layer: Head) -> None:
        """Initialises the last layer as torchvision does."""
        nn.init.normal_(layer.weight, std=0.01)
        _zero(layer)

    def stages(self) -> list[Stage]:
        """Named ``stem`` (the first group), ``group2.0`` … ``fc.6``, ``fc.7`` and ``head``.

        A group's pooling belongs to its last block.
        """
        layers, last = list(self.features), list(self.classifier)
        blocks = [_stage(name, layers[start:stop]) for name, start, stop in self._cuts]
        return [
            _stage("stem", layers[: self._cuts[0][1]]),
            *blocks,
            Stage("fc.6", self._flatten, (self.classifier[0],)),
            _stage("fc.7", last[3:6]),
            _stage("head", last[6:]),
        ]

    def _flatten(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x_NF = self.avgpool(x_NCHW).flatten(1)
        return chain(list(self.classifier)[:3], x_NF)


def _stage(name: str, layers: list[nn.Module]) -> Stage:
    return Stage(name, partial(chain, layers), tuple(layers))


def _zero(layer: nn.Module) -> None:
    assert isinstance(layer.bias, torch.Tensor)
    nn.init.zeros_(layer.bias)


VARIANTS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
# Parameters of the reference, without and with norms, and as the paper's Table 2 has them, which
# knows no norms.
PARAMETERS = {
    "vgg11": (132_863_336, 132_868_840, "133M"),
    "vgg13": (133_047_848, 133_053_736, "133M"),
    "vgg16": (138_357_544, 138_365_992, "138M"),
    "vgg19": (143_667_240, 143_678_248, "144M"),
}
for _name, _depths in VARIANTS.items():
    _plain, _normed, _figure = PARAMETERS[_name]
    for _full, _count, _norm, _stated in (
        (_name, _plain, False, _figure),
        (f"{_name}_bn", _normed, True, ""),
    ):
        _paper = "Simonyan and Zisserman, 2015"
        _published = Published(_paper, _count, f"torchvision:{_full}", _stated)
        register(_full, partial(VGG, _depths, _norm), _published)
