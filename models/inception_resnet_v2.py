"""Inception-ResNet-v2: Inception blocks as scaled residuals.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", 2017: a block's branches are joined, projected back to the block's channels by a linear
1×1 convolution, and added after scaling by 0.1 to 0.3, without which wide networks stop learning
(section 3.3). What is here is the network of the published weights, as TensorFlow-Slim made it and
timm names it: its stem is Inception-v3's, and its blocks are 10, 20 and 10, where the paper's
figure 15 has Inception-v4's stem and 5, 10 and 5. There is no dropout by default, as in timm; the
paper keeps 0.8 while training.

The `small` stem halves the image once instead of three times, and pads every convolution: 28
pixels reach the blocks as 14, 7 and 4, where 299 reach them as 35, 17 and 8. Weights fit both.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from .base import ZooModel, check_positive, check_rates, choose_stem
from .layers.branches import SMALLEST, Block, Branches, Conv, Plan, Pool
from .layers.chain import chain, check_side
from .layers.conv import spatial_mean
from .registry import Published, register
from .stages import Stage

MIXED_5B: Block = (
    (Conv(96),),
    (Conv(48), Conv(64, 5)),
    (Conv(64), Conv(96, 3), Conv(96, 3)),
    (Pool.AVERAGE, Conv(64)),
)
BLOCK_35: Block = (
    (Conv(32),),
    (Conv(32), Conv(32, 3)),
    (Conv(32), Conv(48, 3), Conv(64, 3)),
)
MIXED_6A: Block = (
    (Conv(384, 3, 2, valid=True),),
    (Conv(256), Conv(256, 3), Conv(384, 3, 2, valid=True)),
    (Pool.MAX,),
)
BLOCK_17: Block = (
    (Conv(192),),
    (Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))),
)
MIXED_7A: Block = (
    (Conv(256), Conv(384, 3, 2, valid=True)),
    (Conv(256), Conv(288, 3, 2, valid=True)),
    (Conv(256), Conv(288, 3), Conv(320, 3, 2, valid=True)),
    (Pool.MAX,),
)
BLOCK_8: Block = (
    (Conv(192),),
    (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))),
)


class Residual(Branches):
    """Adds its joined branches, projected and scaled, to its input. NCHW in, NCHW out.

    Args:
        plan: how the table becomes modules.
        channels_in: of input and output.
        block: the branches.
        scale: multiplies the residual.
        rectify: end with a ReLU.
    """

    def __init__(
        self, plan: Plan, channels_in: int, block: Block, scale: float, rectify: bool = True
    ) -> None:
        super().__init__(plan.branches(channels_in, block))
        self.conv2d = nn.Conv2d(self.channels, channels_in, 1)
        self.channels = channels_in
        self.scale = scale
        self.rectify = rectify

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the sum of input and scaled residual."""
        y_NCHW: torch.Tensor = x_NCHW + self.scale * self.conv2d(self.join(x_NCHW))
        return y_NCHW.relu() if self.rectify else y_NCHW


REPEATS = {"repeat": 10, "repeat_1": 20, "repeat_2": 9}
"""How many residual blocks stand at each resolution; another, `block8`, follows the last."""


class InceptionResNetV2(ZooModel):
    """The network, and the linear layer `classif`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (the original), `small` (halves once, all padded), or `auto`, which takes
            `small` where the original leaves nothing, below 75 pixels.
        width: multiplies all channels, which are then rounded to eights.
        depth: multiplies the blocks of each kind, rounded up.
        dropout: rate before the classifier.

    Raises:
        ValueError: for an image that the `imagenet` stem shrinks to nothing.
    """

    head_name = "classif"
    stem_name = "conv2d_1a.conv"

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
            check_side(
                "inception_resnet_v2", self.image_size, SMALLEST, "choose stem: small, or resize"
            )
        plan = Plan(width, small)
        channels = self._build_stem(plan, in_channels)
        channels = self._build_blocks(plan, channels, depth)
        self.conv2d_7b, channels = plan.layer(channels, Conv(1536))
        self.dropout = nn.Dropout(dropout)
        self.classif = nn.Linear(channels, num_classes)

    def _build_stem(self, plan: Plan, channels: int) -> int:
        first = Conv(32, 3, 1 if plan.small else 2, valid=True)
        self.conv2d_1a, channels = plan.layer(channels, first)
        self.conv2d_2a, channels = plan.layer(channels, Conv(32, 3, valid=True))
        self.conv2d_2b, channels = plan.layer(channels, Conv(64, 3))
        self.maxpool_3a, channels = plan.layer(channels, Pool.MAX)
        self.conv2d_3b, channels = plan.layer(channels, Conv(80))
        self.conv2d_4a, channels = plan.layer(channels, Conv(192, 3, valid=True))
        last = Pool.MAX_KEEP if plan.small else Pool.MAX
        self.maxpool_5a, channels = plan.layer(channels, last)
        return channels

    def _build_blocks(self, plan: Plan, channels: int, depth: float) -> int:
        def repeated(name: str, block: Block, scale: float) -> nn.Sequential:
            number = math.ceil(REPEATS[name] * depth)
            return nn.Sequential(*(Residual(plan, channels, block, scale) for _ in range(number)))

        self.mixed_5b = plan.block(channels, MIXED_5B)
        channels = self.mixed_5b.channels
        self.repeat = repeated("repeat", BLOCK_35, 0.17)
        self.mixed_6a = plan.block(channels, MIXED_6A)
        channels = self.mixed_6a.channels
        self.repeat_1 = repeated("repeat_1", BLOCK_17, 0.1)
        self.mixed_7a = plan.block(channels, MIXED_7A)
        channels = self.mixed_7a.channels
        self.repeat_2 = repeated("repeat_2", BLOCK_8, 0.2)
        self.block8 = Residual(plan, channels, BLOCK_8, 1.0, rectify=False)
        return channels

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``mixed5.0`` … ``mixed7.n``, ``last`` and ``head``.

        A group is what has one resolution: `mixed_5b` and `repeat`, then `mixed_6a` and
        `repeat_1`, then `mixed_7a`, `repeat_2` and `block8`.
        """
        return [
            Stage("stem", self._stem, self._stem_layers()),
            *_group("mixed5", self.mixed_5b, *self.repeat),
            *_group("mixed6", self.mixed_6a, *self.repeat_1),
            *_group("mixed7", self.mixed_7a, *self.repeat_2, self.block8),
            Stage("last", self.conv2d_7b, (self.conv2d_7b,)),
            Stage("head", self._classify, (self.classif,)),
        ]

    def _stem_layers(self) -> tuple[nn.Module, ...]:
        return (
            *(self.conv2d_1a, self.conv2d_2a, self.conv2d_2b, self.maxpool_3a),
            *(self.conv2d_3b, self.conv2d_4a, self.maxpool_5a),
        )

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return chain(self._stem_layers(), x_NCHW)

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classif(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]


def _group(name: str, *blocks: nn.Module) -> Iterator[Stage]:
    for number, block in enumerate(blocks):
        yield Stage(f"{name}.{number}", block, (block,))


PUBLISHED = Published(
    "Szegedy et al., 2017", 55_843_464, "timm:inception_resnet_v2", resolution=299
)
register("inception_resnet_v2", InceptionResNetV2, PUBLISHED)
