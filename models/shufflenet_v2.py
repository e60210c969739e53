"""ShuffleNet V2: half of the channels pass through, the other half is filtered.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018.
Table 5 gives the layout, Figure 3 (c) and (d) the two units. Names, shapes and initialisation
(PyTorch's own) are torchvision's; so are the channels of `x2_0`, 244 in the first group.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from .base import ZooModel, check_positive, check_rates, choose_stem
from .layers.conv import ConvNormAct, spatial_mean
from .registry import Published, register
from .stages import Stage

STEM = 24
"""Channels of the first convolution in every variant."""
LAYERS = (4, 8, 4)
"""Units of each group."""


def shuffle(left_NCHW: torch.Tensor, right_NCHW: torch.Tensor) -> torch.Tensor:
    """Interleaves the channels of two tensors: [N, C, H, W] twice to [N, 2 C, H, W]."""
    return torch.stack((left_NCHW, right_NCHW), dim=2).flatten(1, 2)


class Unit(nn.Module):
    """Filters the second half of the channels, then shuffles. NCHW in, NCHW out.

    A unit that halves the image has no half to pass through: both branches filter the input.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        half = channels_out // 2
        entry = half if stride == 1 else channels_in
        self.halves = stride == 1
        self.branch1 = nn.Sequential(
            *(() if stride == 1 else (*_depthwise(entry, stride), *_pointwise(entry, half)))
        )
        self.branch2 = nn.Sequential(
            *_pointwise(entry, half), *_depthwise(half, stride), *_pointwise(half, half)
        )

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the shuffled channels of both branches."""
        left, right = x_NCHW.chunk(2, dim=1) if self.halves else (x_NCHW, x_NCHW)
        return shuffle(self.branch1(left), self.branch2(right))


def _pointwise(channels_in: int, channels_out: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels_in, channels_out, 1, bias=False)
    yield nn.BatchNorm2d(channels_out)
    yield nn.ReLU(inplace=True)


def _depthwise(channels: int, stride: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    yield nn.BatchNorm2d(channels)


class ShuffleNetV2(ZooModel):
    """The network: `conv1`, `stage2` … `stage4`, `conv5`, and the linear layer `fc`.

    Args:
        channels: of the three groups, and of the last convolution.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (stride 2, then pooling), `small` (stride 1, no pooling), or `auto`, which
            takes `small` up to 64 pixels.
        width: multiplies the channels, which are then rounded to even numbers; not the stem's.
        dropout: rate before the classifier.
    """

    head_name = "fc"
    stem_name = "conv1.0"

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
        imagenet = choose_stem(stem, self.image_size) == "imagenet"
        *groups, last = (max(2, 2 * round(c * width / 2)) for c in channels)
        self.conv1 = ConvNormAct(
            in_channels, STEM, stride=2 if imagenet else 1, activation=partial(nn.ReLU, True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        entry = STEM
        for number, (wide, layers) in enumerate(zip(groups, LAYERS, strict=True), 2):
            units = [Unit(entry, wide, 2), *(Unit(wide, wide, 1) for _ in range(1, layers))]
            self.add_module(f"stage{number}", nn.Sequential(*units))
            entry = wide
        self.conv5 = ConvNormAct(entry, last, kernel=1, activation=partial(nn.ReLU, True))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, num_classes)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``stage2.0`` … ``stage4.3``, ``last`` and ``head``."""
        units = [
            Stage(f"stage{group}.{number}", unit, (unit,))
            for group in (2, 3, 4)
            for number, unit in enumerate(self.get_submodule(f"stage{group}").children())
        ]
        last = Stage("last", self.conv5, (self.conv5,))
        head = Stage("head", self._classify, (self.fc,))
        return [Stage("stem", self._stem, (self.conv1,)), *units, last, head]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.maxpool(self.conv1(x_NCHW))  # type: ignore[no-any-return]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]


VARIANTS = {
    "shufflenet_v2_x0_5": (48, 96, 192, 1024),
    "shufflenet_v2_x1_0": (116, 232, 464, 1024),
    "shufflenet_v2_x1_5": (176, 352, 704, 1024),
    "shufflenet_v2_x2_0": (244, 488, 976, 2048),
}
PARAMETERS = {
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
    "shufflenet_v2_x1_5": 3_503_624,
    "shufflenet_v2_x2_0": 7_393_996,
}
for _name, _channels in VARIANTS.items():
    _published = Published("Ma et al., 2018", PARAMETERS[_name], f"torchvision:{_name}")
    register(_name, partial(ShuffleNetV2, _channels), _published)
