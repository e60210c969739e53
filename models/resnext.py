"""ResNeXt: residual networks whose bottlenecks filter in independent parts.

Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2017. It is ResNet
with a grouped 3×3 convolution (the paper's Figure 3c): `50_32x4d` has 50 layers, 32 parts, each
of 4 channels in the first group of blocks (Table 1). `101_32x8d`, twice as wide, is from Mahajan et
al., "Exploring the Limits of Weakly Supervised Pretraining", 2018. Names and shapes are
torchvision's. A `width` below 1 narrows the parts, down to one channel each, not their number.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

from .registry import Published, register
from .resnet import Bottleneck, ResNet, Variant


class Bottleneck32x4d(Bottleneck):
    """32 parts of 4 channels. NCHW in, NCHW out."""

    groups = 32
    group_width = 4


class Bottleneck32x8d(Bottleneck):
    """32 parts of 8 channels. NCHW in, NCHW out."""

    groups = 32
    group_width = 8


VARIANTS = {
    "resnext50_32x4d": Variant(Bottleneck32x4d, (3, 4, 6, 3)),
    "resnext101_32x8d": Variant(Bottleneck32x8d, (3, 4, 23, 3)),
}
PUBLISHED = {
    "resnext50_32x4d": Published(
        "Xie et al., 2017", 25_028_904, "torchvision:resnext50_32x4d", "25.0M"
    ),
    "resnext101_32x8d": Published(
        "Mahajan et al., 2018", 88_791_336, "torchvision:resnext101_32x8d"
    ),
}
for _name, _variant in VARIANTS.items():
    register(_name, partial(ResNet, _variant), PUBLISHED[_name])
