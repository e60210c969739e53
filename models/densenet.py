"""Densely connected networks.

Huang et al., "Densely Connected Convolutional Networks", 2017: a layer takes the maps of all
layers before it in its block and adds `k` new ones, the growth rate. These are the paper's
DenseNet-BC: 1×1 bottlenecks of 4k channels, and transitions that halve channels and image. Depths
and growth rates are the paper's Table 1; names, shapes and initialisation are torchvision's.

Inside a block, the stages hand on the maps of all layers so far as a tuple, instead of one tensor
that each of them copies. So checkpointing by stage keeps each map once, memory that grows linearly
with depth and not quadratically (Pleiss et al., "Memory-Efficient Implementation of DenseNets",
2017). The block's last layer gives one tensor.

Axes: N batch, C channels, H height, W width; K the growth rate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.chain import chain, check_side
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage, State

BOTTLENECK = 4
"""Channels of a layer's 1×1 convolution, in growth rates (the paper's section 3)."""

SMALLEST = 29
"""The smallest side, in pixels, that the ImageNet layout can halve five times."""


class DenseLayer(nn.Module):
    """Norm, ReLU and convolution twice: 1×1 to 4K channels, then 3×3 to K.

    N(C)HW in, NKHW out: the new maps alone, so that its caller chooses how to keep the rest.
    """

    def __init__(self, channels_in: int, growth: int, dropout: float) -> None:
        super().__init__()
        inner = BOTTLENECK * growth
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the maps that the layer adds."""
        y_NCHW = self.conv1(self.relu1(self.norm1(x_NCHW)))
        y_NKHW = self.conv2(self.relu2(self.norm2(y_NCHW)))
        return self.dropout(y_NKHW)  # type: ignore[no-any-return]


def extend(layer: DenseLayer, last: bool, maps: State) -> State:
    """A layer as a stage: adds its maps to those before it.

    Args:
        layer: what to apply.
        last: whether it ends its block, and the next step takes one tensor.
        maps: the block's input, alone or with what the layers so far have added.

    Returns:
        All maps, as a tuple, or concatenated along channels after the last layer.
    """
    before = (maps,) if isinstance(maps, torch.Tensor) else maps
    after = (*before, layer(before[0] if len(before) == 1 else torch.cat(before, 1)))
    return torch.cat(after, 1) if last else after


class Transition(nn.Sequential):
    """Halves channels and image between two blocks. NCHW in, N(C/2)(H/2)(W/2) out."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels_in, channels_in // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)


@dataclass(frozen=True)
class Variant:
    """A column of the paper's Table 1."""

    growth: int
    """Maps that each layer adds."""
    layers: tuple[int, int, int, int]
    """Layers of each block."""


class DenseNet(ZooModel):
    """The network: `features` (stem, four blocks with transitions between, norm), `classifier`.

    Args:
        variant: growth rate and depths.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (7×7 of stride 2, then pooling), `small` (3×3 of stride 1, as in the
            paper's section 4.2), or `auto`, which takes `small` up to 64 pixels.
        width: multiplies the growth rate, which is then rounded to fours; the stem has twice as
            many channels.
        depth: multiplies the layers of each block, rounded up.
        dropout: rate after each dense layer; the paper has 0.2 without augmentation.

    Raises:
        ValueError: for an image that the ImageNet layout shrinks to nothing.
    """

    head_name = "classifier"
    stem_name = "features.conv0"

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        width: float = 1.0,
        depth: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width, depth=depth)
        check_rates(dropout=dropout)
        imagenet = choose_stem(stem, self.image_size) == "imagenet"
        if imagenet:
            check_side("densenet", self.image_size, SMALLEST, "choose stem: small, or resize")
        growth = make_divisible(variant.growth * width, 4)
        layers = [math.ceil(number * depth) for number in variant.layers]
        self.features = _stem(imagenet, in_channels, 2 * growth)
        channels = self._add_blocks(2 * growth, growth, layers, dropout)
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.init_head(self.classifier)

    def _add_blocks(self, channels: int, growth: int, layers: list[int], dropout: float) -> int:
        for block, number in enumerate(layers, 1):
            dense = nn.ModuleDict()
            for layer in range(number):
                dense[f"denselayer{layer + 1}"] = DenseLayer(channels, growth, dropout)
                channels += growth
            self.features.add_module(f"denseblock{block}", dense)
            if block < len(layers):
                self.features.add_module(f"transition{block}", Transition(channels))
                channels //= 2
        return channels

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``denseblock1.1`` … ``denseblock4.n``, ``norm`` and ``head``.

        Transitions are ``transition1`` to ``transition3``.
        """
        parts = dict(self.features.named_children())
        stem = tuple(parts[name] for name in ("conv0", "norm0", "relu0", "pool0"))
        found = [Stage("stem", partial(chain, stem), stem)]
        for name, part in parts.items():
            if isinstance(part, nn.ModuleDict):
                found.extend(_block_stages(name, part))
            elif isinstance(part, Transition):
                found.append(Stage(name, part, (part,)))
        norm = Stage("norm", self._norm, (parts["norm5"],))
        return [*found, norm, Stage("head", self._classify, (self.classifier,))]

    def _norm(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.features.get_submodule("norm5")(x_NCHW).relu()  # type: ignore[no-any-return]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(spatial_mean(x_NCHW))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Initialises a classifier as torchvision does: PyTorch's weights, no bias."""
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)

    @staticmethod
    def key_map(name: str) -> str:
        """The published files are older than the names: ``norm.1`` is ``norm1`` now."""
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def _stem(imagenet: bool, in_channels: int, channels: int) -> nn.Sequential:
    kernel, stride = (7, 2) if imagenet else (3, 1)
    features = nn.Sequential()
    features.conv0 = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    features.norm0 = nn.BatchNorm2d(channels)
    features.relu0 = nn.ReLU(inplace=True)
    features.pool0 = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
    return features


def _block_stages(name: str, layers: nn.ModuleDict) -> Iterator[Stage]:
    for number, layer in enumerate(layers.values(), 1):
        assert isinstance(layer, DenseLayer)
        yield Stage(f"{name}.{number}", partial(extend, layer, number == len(layers)), (layer,))


VARIANTS = {
    "densenet121": Variant(32, (6, 12, 24, 16)),
    "densenet161": Variant(48, (6, 12, 36, 24)),
    "densenet169": Variant(32, (6, 12, 32, 32)),
    "densenet201": Variant(32, (6, 12, 48, 32)),
}
# Parameters of the reference, and as the paper's section 4.4 has them.
PARAMETERS = {
    "densenet121": (7_978_856, ""),
    "densenet161": (28_681_000, ""),
    "densenet169": (14_149_480, ""),
    "densenet201": (20_013_928, "20M"),
}
for _name, _variant in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published("Huang et al., 2017", _count, f"torchvision:{_name}", _figure)
    register(_name, partial(DenseNet, _variant), _published)
