"""Inception-v4: Inception blocks alone, without residual connections.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", 2017, figures 3 to 9. Names, shapes and initialisation are timm's. There is no dropout
by default, as in timm; the paper's figure 9 keeps 0.8 while training.

The `small` stem halves the image once instead of three times, and pads every convolution: 28
pixels reach the blocks as 14, 7 and 4, where 299 reach them as 35, 17 and 8. Weights fit both.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from .base import ZooModel, check_positive, check_rates, choose_stem
from .layers.branches import SMALLEST, Block, Branches, Conv, Plan, Pool
from .layers.chain import chain, check_side
from .layers.conv import spatial_mean
from .registry import Published, register
from .stages import Stage

MIXED_4A: Block = (
    (Conv(64), Conv(96, 3, valid=True)),
    (Conv(64), Conv(64, (1, 7)), Conv(64, (7, 1)), Conv(96, 3, valid=True)),
)
INCEPTION_A: Block = (
    (Conv(96),),
    (Conv(64), Conv(96, 3)),
    (Conv(64), Conv(96, 3), Conv(96, 3)),
    (Pool.AVERAGE, Conv(96)),
)
REDUCTION_A: Block = (
    (Conv(384, 3, 2, valid=True),),
    (Conv(192), Conv(224, 3), Conv(256, 3, 2, valid=True)),
    (Pool.MAX,),
)
INCEPTION_B: Block = (
    (Conv(384),),
    (Conv(192), Conv(224, (1, 7)), Conv(256, (7, 1))),
    (Conv(192), Conv(192, (7, 1)), Conv(224, (1, 7)), Conv(224, (7, 1)), Conv(256, (1, 7))),
    (Pool.AVERAGE, Conv(128)),
)
REDUCTION_B: Block = (
    (Conv(192), Conv(192, 3, 2, valid=True)),
    (Conv(256), Conv(256, (1, 7)), Conv(320, (7, 1)), Conv(320, 3, 2, valid=True)),
    (Pool.MAX,),
)


class InceptionC(nn.Module):
    """The block at the end, two of whose branches fork (the paper's figure 6). NCHW to NCHW.

    Attributes:
        channels: of the output.
    """

    def __init__(self, plan: Plan, channels_in: int) -> None:
        super().__init__()
        self.branch0, out0 = plan.layer(channels_in, Conv(256))
        self.branch1_0, inner1 = plan.layer(channels_in, Conv(384))
        self.branch1_1a, out1a = plan.layer(inner1, Conv(256, (1, 3)))
        self.branch1_1b, out1b = plan.layer(inner1, Conv(256, (3, 1)))
        self.branch2_0, inner2 = plan.layer(channels_in, Conv(384))
        self.branch2_1, inner2 = plan.layer(inner2, Conv(448, (3, 1)))
        self.branch2_2, inner2 = plan.layer(inner2, Conv(512, (1, 3)))
        self.branch2_3a, out2a = plan.layer(inner2, Conv(256, (1, 3)))
        self.branch2_3b, out2b = plan.layer(inner2, Conv(256, (3, 1)))
        self.branch3, out3 = plan.branch(channels_in, (Pool.AVERAGE, Conv(256)))
        self.channels = out0 + out1a + out1b + out2a + out2b + out3

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the six outputs, concatenated."""
        y_NCHW = self.branch1_0(x_NCHW)
        z_NCHW = self.branch2_2(self.branch2_1(self.branch2_0(x_NCHW)))
        parts = (
            self.branch0(x_NCHW),
            self.branch1_1a(y_NCHW),
            self.branch1_1b(y_NCHW),
            self.branch2_3a(z_NCHW),
            self.branch2_3b(z_NCHW),
            self.branch3(x_NCHW),
        )
        return torch.cat(parts, 1)


Mixed = Branches | InceptionC
REPEATS = {"mixed5": 4, "mixed6": 7, "mixed7": 3}
"""How often the paper has Inception-A, B and C."""


class InceptionV4(ZooModel):
    """The network: `features`, and the linear layer `last_linear`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (the paper's), `small` (halves once, all padded), or `auto`, which takes
            `small` where the paper's leaves nothing, below 75 pixels.
        width: multiplies all channels, which are then rounded to eights.
        depth: multiplies the blocks of each kind, rounded up.
        dropout: rate before the classifier.

    Raises:
        ValueError: for an image that the `imagenet` stem shrinks to nothing.
    """

    head_name = "last_linear"
    stem_name = "features.0.conv"

    def __init__(
        self,
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
        tight = stem == "auto" and min(self.image_size) < SMALLEST
        small = tight or choose_stem(stem, self.image_size) == "small"
        if not small:
            check_side("inception_v4", self.image_size, SMALLEST, "choose stem: small, or resize")
        plan = Plan(width, small)
        self.features = nn.Sequential()
        self.groups: dict[str, int] = {}
        channels = self._add_stem(plan, in_channels)
        channels = self._add_blocks(plan, channels, depth)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(channels, num_classes)

    def _add_stem(self, plan: Plan, channels: int) -> int:
        stride = 1 if plan.small else 2
        convs = Conv(32, 3, stride, valid=True), Conv(32, 3, valid=True), Conv(64, 3)
        for conv in convs:
            module, channels = plan.layer(channels, conv)
            self.features.append(module)
        mixed_3a = {
            "maxpool": plan.layer(channels, Pool.MAX),
            "conv": plan.layer(channels, Conv(96, 3, 2, valid=True)),
        }
        channels = self._add("mixed3", Branches(mixed_3a))
        channels = self._add("mixed4", plan.block(channels, MIXED_4A))
        mixed_5a = {
            "conv": plan.layer(channels, Conv(192, 3, stride, valid=True)),
            "maxpool": plan.layer(channels, Pool.MAX_KEEP if plan.small else Pool.MAX),
        }
        return self._add("mixed5", Branches(mixed_5a))

    def _add_blocks(self, plan: Plan, channels: int, depth: float) -> int:
        kinds: dict[str, tuple[Block | None, Callable[[int], Mixed]]] = {
            "mixed5": (None, lambda channels: plan.block(channels, INCEPTION_A)),
            "mixed6": (REDUCTION_A, lambda channels: plan.block(channels, INCEPTION_B)),
            "mixed7": (REDUCTION_B, lambda channels: InceptionC(plan, channels)),
        }
        for group, (reduction, make) in kinds.items():
            if reduction is not None:
                channels = self._add(group, plan.block(channels, reduction))
            for _ in range(math.ceil(REPEATS[group] * depth)):
                channels = self._add(group, make(channels))
        return channels

    def _add(self, group: str, block: Mixed) -> int:
        self.features.append(block)
        self.groups[group] = self.groups.get(group, 0) + 1
        return block.channels

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``mixed3.0`` … ``mixed7.n`` and ``head``.

        A group's number is that of TensorFlow's names (Mixed_5b); one that halves the image does
        it in its first block.
        """
        layers = tuple(self.features.children())
        stem, blocks = layers[:3], layers[3:]
        names = [f"{group}.{n}" for group, count in self.groups.items() for n in range(count)]
        return [
            Stage("stem", partial(chain, stem), stem),
            *(Stage(name, block, (block,)) for name, block in zip(names, blocks, strict=True)),
            Stage("head", self._classify, (self.last_linear,)),
        ]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.last_linear(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]


PUBLISHED = Published("Szegedy et al., 2017", 42_679_816, "timm:inception_v4", resolution=299)
register("inception_v4", InceptionV4, PUBLISHED)
