"""Inception-v3: convolutions factorised into smaller and asymmetric ones.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, in the form of
torchvision, whose names, shapes and initialisation these are, and of TensorFlow before it. The
auxiliary head has batch norm, which the paper finds to regularise; label smoothing, from the same
paper, is a matter of the loss.

torchvision's published weights expect images of 299 pixels normalised with 0.5 and 0.5;
`transform_input` makes these of images normalised as ImageNet's.

The original layout needs 75 pixels. The small one has the same weights, but its stem pads each
3×3 convolution, halves nothing and pools nothing: 28 pixels reach the modules as 28, where 299
arrive as 35. The auxiliary head sees 5×5 pixels: of 17×17 and more by pooling 5×5 with stride 3
as in the original, of less, where that leaves too few, by adaptive pooling.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.auxiliary import ConvNormRelu, advance, check_half_range, half_range
from .layers.chain import chain, check_side
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage

Scale = Callable[[int], int]
"""Makes a module's channels of the original's."""

SMALLEST = 75
"""The smallest image side, in pixels, that the original layout takes."""


class Conv(NamedTuple):
    """A convolution of a branch, with its norm and ReLU."""

    channels: int
    kernel: int | tuple[int, int] = 1
    halve: bool = False
    """Stride 2, without padding."""


@dataclass(frozen=True)
class Branch:
    """Pooling, if any, convolutions in a row, and those that share the last one's output."""

    row: tuple[Conv, ...] = ()
    fork: tuple[Conv, ...] = ()
    pool: Callable[[torch.Tensor], torch.Tensor] | None = None


Module = dict[str, Branch]
"""The branches of a module by torchvision's names; a number follows where one has several."""

_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1)
_max = partial(F.max_pool2d, kernel_size=3, stride=2)
_ROW, _COLUMN = (1, 7), (7, 1)
_FORK = (Conv(384, (1, 3)), Conv(384, (3, 1)))


def _module_a(pool: int) -> Module:
    """Figure 5 of the paper, but one 5×5 convolution is left whole."""
    return {
        "branch1x1": Branch((Conv(64),)),
        "branch5x5": Branch((Conv(48), Conv(64, 5))),
        "branch3x3dbl": Branch((Conv(64), Conv(96, 3), Conv(96, 3))),
        "branch_pool": Branch((Conv(pool),), pool=_average),
    }


def _module_c(inner: int) -> Module:
    """Figure 6 with n = 7: a 7×7 convolution as a row and a column."""
    row, column = Conv(inner, _ROW), Conv(inner, _COLUMN)
    double = (Conv(inner), column, row, column, Conv(192, _ROW))
    return {
        "branch1x1": Branch((Conv(192),)),
        "branch7x7": Branch((Conv(inner), row, Conv(192, _COLUMN))),
        "branch7x7dbl": Branch(double),
        "branch_pool": Branch((Conv(192),), pool=_average),
    }


# Convolutions of stride 2 beside pooling (Figure 10), twice.
MODULE_B: Module = {
    "branch3x3": Branch((Conv(384, 3, halve=True),)),
    "branch3x3dbl": Branch((Conv(64), Conv(96, 3), Conv(96, 3, halve=True))),
    "pool": Branch(pool=_max),
}
MODULE_D: Module = {
    "branch3x3": Branch((Conv(192), Conv(320, 3, halve=True))),
    "branch7x7x3": Branch((Conv(192), Conv(192, _ROW), Conv(192, _COLUMN), Conv(192, 3, True))),
    "pool": Branch(pool=_max),
}
# A row beside a column of three, for many channels on the coarsest grid (Figure 7).
MODULE_E: Module = {
    "branch1x1": Branch((Conv(320),)),
    "branch3x3": Branch((Conv(384),), _FORK),
    "branch3x3dbl": Branch((Conv(448), Conv(384, 3)), _FORK),
    "branch_pool": Branch((Conv(192),), pool=_average),
}
MODULES: dict[str, Module] = {
    "5b": _module_a(32),
    "5c": _module_a(64),
    "5d": _module_a(64),
    "6a": MODULE_B,
    "6b": _module_c(128),
    "6c": _module_c(160),
    "6d": _module_c(160),
    "6e": _module_c(192),
    "7a": MODULE_D,
    "7b": MODULE_E,
    "7c": MODULE_E,
}
_AUXILIARY = "6e"
"""The module whose output the auxiliary head sees."""


class Mixed(nn.Module):
    """Branches side by side. NCHW in, NCHW out.

    Attributes:
        channels: of the output.
    """

    def __init__(self, channels_in: int, module: Module, scale: Scale) -> None:
        super().__init__()
        self.channels = 0
        self._paths: list[tuple[Branch, list[str], list[str]]] = []
        for prefix, branch in module.items():
            channels, row, fork = channels_in, [], []
            for number, conv in enumerate(branch.row, 1):
                single = len(branch.row) == 1 and not branch.fork
                row.append(prefix if single else f"{prefix}_{number}")
                channels = self._add(row[-1], channels, conv, scale)
            for letter, conv in zip("ab", branch.fork, strict=False):
                fork.append(f"{prefix}_{len(branch.row) + 1}{letter}")
                self.channels += self._add(fork[-1], channels, conv, scale)
            self.channels += 0 if fork else channels
            self._paths.append((branch, row, fork))

    def _add(self, name: str, channels_in: int, conv: Conv, scale: Scale) -> int:
        stride, padding = (2, 0) if conv.halve else (1, None)
        channels = scale(conv.channels)
        layer = ConvNormRelu(channels_in, channels, conv.kernel, stride=stride, padding=padding)
        self.add_module(name, layer)
        return channels

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the branches' outputs, one behind the other."""
        outputs: list[torch.Tensor] = []
        for branch, row, fork in self._paths:
            y_NCHW = branch.pool(x_NCHW) if branch.pool else x_NCHW
            y_NCHW = chain([self.get_submodule(name) for name in row], y_NCHW)
            outputs += [self.get_submodule(name)(y_NCHW) for name in fork] or [y_NCHW]
        return torch.cat(outputs, 1)


class AuxiliaryHead(nn.Module):
    """Logits from before the last halving: NCHW to NF."""

    def __init__(self, channels_in: int, scale: Scale, classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNormRelu(channels_in, scale(128))
        self.conv1 = ConvNormRelu(scale(128), scale(768), 5, padding=0)
        self.fc = nn.Linear(scale(768), classes)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        if min(x_NCHW.shape[2:]) >= 17:
            x_NCHW = F.avg_pool2d(x_NCHW, 5, 3)
        else:
            x_NCHW = F.adaptive_avg_pool2d(x_NCHW, (5, 5))
        return self.fc(spatial_mean(self.conv1(self.conv0(x_NCHW))))  # type: ignore[no-any-return]


class InceptionV3(ZooModel):
    """The network: five convolutions, eleven modules and the linear layer `fc`; `AuxLogits`.

    In training mode it returns its logits and those of `AuxLogits`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels; at least 75, or any with the
            small stem.
        width: multiplies the channels, which are then rounded to eights.
        dropout: rate before `fc`.
        aux: whether there is an auxiliary head.
        stem: `imagenet`, `small` for the small layout, or `auto`: small below 75 pixels.
        transform_input: images are normalised as ImageNet's, and the weights want 0.5 and 0.5.
    """

    head_name = "fc"
    stem_name = "Conv2d_1a_3x3.conv"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: float = 1.0,
        dropout: float = 0.5,
        aux: bool = True,
        stem: str = "auto",
        transform_input: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)
        check_half_range(transform_input, in_channels)
        self.transform_input = transform_input

        def scale(channels: int) -> int:
            return make_divisible(channels * width)

        self._build_stem(stem, scale)
        channels, head = scale(192), None
        for name, module in MODULES.items():
            block = Mixed(channels, module, scale)
            self.add_module(f"Mixed_{name}", block)
            channels = block.channels
            if aux and name == _AUXILIARY:
                head = AuxiliaryHead(channels, scale, num_classes)
        self.AuxLogits = head
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                self.init_head(layer)
        if head is not None:
            nn.init.normal_(head.conv1.conv.weight, std=0.01)

    def _build_stem(self, stem: str, scale: Scale) -> None:
        tight = stem == "auto" and min(self.image_size) < SMALLEST
        small = tight or choose_stem(stem, self.image_size) == "small"
        if not small:
            check_side("inception_v3", self.image_size, SMALLEST, "resize, or choose stem: small")
        stride, padding = (1, 1) if small else (2, 0)
        c32, c64, c80, c192 = map(scale, (32, 64, 80, 192))
        self.Conv2d_1a_3x3 = ConvNormRelu(self.in_channels, c32, 3, stride=stride, padding=padding)
        self.Conv2d_2a_3x3 = ConvNormRelu(c32, c32, 3, padding=padding)
        self.Conv2d_2b_3x3 = ConvNormRelu(c32, c64, 3)
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvNormRelu(c64, c80)
        self.Conv2d_4a_3x3 = ConvNormRelu(c80, c192, 3, padding=padding)
        self.maxpool2 = nn.Identity() if small else nn.MaxPool2d(3, 2)

    def init_head(self, layer: Head) -> None:
        """Initialises any layer's weights as torchvision does; biases stay PyTorch's."""
        auxiliary = self.AuxLogits is not None and layer is self.AuxLogits.fc
        nn.init.normal_(layer.weight, std=0.001 if auxiliary else 0.1)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Paths of the layers that give logits, in the order of the outputs."""
        return ("fc",) if self.AuxLogits is None else ("fc", "AuxLogits.fc")

    def key_map(self, name: str) -> str | None:  # type: ignore[override]
        """Published names are ours; a network without the auxiliary head passes its over."""
        return None if self.AuxLogits is None and name.startswith("AuxLogits.") else name

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``mixed5.0`` (Mixed_5b), ``mixed5.1``, … ``mixed7.2`` and ``head``."""
        stem = self._stem_layers()
        stages = [Stage("stem", self._stem, tuple(stem))]
        for name in MODULES:
            block = self.get_submodule(f"Mixed_{name}")
            head = self.AuxLogits if name == _AUXILIARY else None
            used = (block,) if head is None else (block, head)
            group = [other for other in MODULES if other[0] == name[0]]
            stages.append(
                Stage(f"mixed{name[0]}.{group.index(name)}", partial(advance, (block,), head), used)
            )
        classify = partial(advance, (spatial_mean, self.dropout, self.fc), None)
        return [*stages, Stage("head", classify, (self.fc,))]

    def _stem_layers(self) -> list[nn.Module]:
        return [
            self.Conv2d_1a_3x3,
            self.Conv2d_2a_3x3,
            self.Conv2d_2b_3x3,
            self.maxpool1,
            self.Conv2d_3b_1x1,
            self.Conv2d_4a_3x3,
            self.maxpool2,
        ]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        if self.transform_input:
            x_NCHW = half_range(x_NCHW)
        return chain(self._stem_layers(), x_NCHW)


# Without the auxiliary head 23,834,568, which is what the abstract's "less than 25 million" fits.
register(
    "inception_v3",
    InceptionV3,
    Published(
        "Szegedy et al., 2016",
        27_161_264,
        "torchvision:inception_v3",
        "< 25M (ours without aux: 23.8M)",
        299,
    ),
)
