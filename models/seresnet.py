"""SE-ResNet: residual networks whose branches weigh their channels.

Hu et al., "Squeeze-and-Excitation Networks", 2018. Each residual branch ends in a squeeze-excite
block (Figure 3), which narrows to a sixteenth of the channels (section 6.1), but not below eight.
Names and shapes are timm's, whose weights of `seresnet50` are the public ones.

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .layers.conv import SqueezeExcite, make_divisible
from .registry import Published, register
from .resnet import BasicBlock, Bottleneck, ResNet, Variant

REDUCTION = 16
"""How many times fewer channels there are between the gate's two convolutions."""


def _gate(channels: int) -> SqueezeExcite:
    squeezed = make_divisible(channels / REDUCTION)
    return SqueezeExcite(channels, squeezed, activation=partial(nn.ReLU, inplace=True))


class SEBasicBlock(BasicBlock):
    """Two 3×3 convolutions and a gate. NCHW in, NCHW out."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.se = _gate(channels)

    def branch(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The residual."""
        return self.se(super().branch(x_NCHW))  # type: ignore[no-any-return]


class SEBottleneck(Bottleneck):
    """1×1, 3×3 and 1×1 convolutions and a gate. NCHW in, NCHW out."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.se = _gate(channels * self.expansion)

    def branch(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The residual."""
        return self.se(super().branch(x_NCHW))  # type: ignore[no-any-return]


VARIANTS = {
    "seresnet18": Variant(SEBasicBlock, (2, 2, 2, 2)),
    "seresnet34": Variant(SEBasicBlock, (3, 4, 6, 3)),
    "seresnet50": Variant(SEBottleneck, (3, 4, 6, 3)),
    "seresnet101": Variant(SEBottleneck, (3, 4, 23, 3)),
    "seresnet152": Variant(SEBottleneck, (3, 8, 36, 3)),
}
# Parameters of the reference, and as the paper has them (Table 10: 16 times fewer channels).
PARAMETERS = {
    "seresnet18": (11_779_624, ""),
    "seresnet34": (21_960_416, ""),
    "seresnet50": (28_088_024, "28.1M"),
    "seresnet101": (49_326_872, ""),
    "seresnet152": (66_821_848, ""),
}
for _name, _variant in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published("Hu et al., 2018", _count, f"timm:{_name}", _figure)
    register(_name, partial(ResNet, _variant), _published)
