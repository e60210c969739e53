"""SqueezeNet: fire modules, few parameters.

Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50× fewer parameters and <0.5MB model
size", 2016. A fire module squeezes with 1×1 convolutions, then expands with 1×1 and 3×3 ones. The
head is a 1×1 convolution, rectified and averaged over the image, so that logits are never below
zero. Version 1.0 is the paper's Table 1; 1.1, from the authors' code, has a smaller first
convolution and pools earlier, for 2.4 times less computation. Names, shapes and initialisation
are torchvision's.

The small layout begins with a 3×3 convolution of stride 1, leaves out the first pooling, and has
batch norms (Ioffe and Szegedy, 2015), which the paper has not: three epochs of AdamW on 1,500 of
scikit-learn's digits, at 28 pixels and a quarter of the width of 1.1, got 41 and 60 % of the rest
right with norms, 11 and 33 % without (two runs each).

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.chain import chain, check_side
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage


class Fire(nn.Module):
    """Squeezes, then expands by two convolutions side by side. NCHW in, N(2E)HW out.

    Args:
        channels_in: of the input.
        squeezed: channels between.
        expanded: channels of each of the two expanding convolutions.
        norm: a batch norm before each ReLU, and no biases.
    """

    def __init__(self, channels_in: int, squeezed: int, expanded: int, norm: bool) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeezed, 1, bias=not norm)
        self.squeeze_norm = nn.BatchNorm2d(squeezed) if norm else nn.Identity()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1, bias=not norm)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1, bias=not norm)
        self.expand_norm = nn.BatchNorm2d(2 * expanded) if norm else nn.Identity()

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the maps of the 1×1 convolution, then those of the 3×3 one."""
        s_NCHW = self.squeeze_norm(self.squeeze(x_NCHW)).relu()
        y_NCHW = torch.cat([self.expand1x1(s_NCHW), self.expand3x3(s_NCHW)], 1)
        return self.expand_norm(y_NCHW).relu()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Variant:
    """A layout. A pooling that halves the image stands before each group of fire modules."""

    channels: int
    """Of the first convolution."""
    kernel: int
    """Of the first convolution, whose stride is 2."""
    groups: tuple[tuple[int, ...], ...]
    """Squeezed channels of each group's fire modules; each half expands them fourfold."""

    @property
    def smallest(self) -> int:
        """The smallest image side that survives the first convolution and all poolings."""
        return 2 * ((1 << len(self.groups)) - 1) + self.kernel


EXPANSION = 4
"""Channels of each expanding convolution, in squeezed ones (the paper's section 3.2)."""


class SqueezeNet(ZooModel):
    """The network: `features`, and `classifier`, whose second layer gives maps of logits.

    Args:
        variant: the layout.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (convolution of stride 2, then pooling), `small` (3×3 of stride 1, no
            pooling), or `auto`, which takes `small` up to 64 pixels.
        width: multiplies all channels, which are then rounded to eights.
        dropout: rate before the head's convolution.
        norm: a batch norm behind each convolution but the head's; by default with the `small`
            stem alone. Published weights have none.

    Raises:
        ValueError: for an image that the ImageNet layout shrinks to nothing.
    """

    head_name = "classifier.1"
    stem_name = "features.0"

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        width: float = 1.0,
        dropout: float = 0.5,
        norm: bool | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout)
        imagenet = choose_stem(stem, self.image_size) == "imagenet"
        if imagenet:
            way_out = "choose stem: small, or resize"
            check_side("squeezenet", self.image_size, variant.smallest, way_out)
        norm = not imagenet if norm is None else norm
        entry = make_divisible(variant.channels * width)
        self.features = nn.Sequential(
            *_first(in_channels, entry, variant.kernel if imagenet else None, norm),
            *_groups(entry, variant, width, norm, imagenet),
        )
        last = 2 * make_divisible(variant.groups[-1][-1] * EXPANSION * width)
        head = nn.Conv2d(last, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), head)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.init_head(head)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` … ``group3.n`` and ``head``.

        A group's first stage begins with the pooling, but the first pooling is the stem's.
        """
        conv, relu, pool, *rest = self.features
        stages = [Stage("stem", partial(chain, (conv, relu, pool)), (conv, relu))]
        group, number = 1, 0
        before: tuple[nn.Module, ...] = ()
        for module in rest:
            if isinstance(module, Fire):
                fn = partial(chain, (*before, module))
                stages.append(Stage(f"group{group}.{number}", fn, (module,)))
                number, before = number + 1, ()
            else:
                group, number, before = group + 1, 0, (module,)
        return [*stages, Stage("head", self._classify, (self.classifier,))]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return spatial_mean(self.classifier(x_NCHW).relu())

    def init_head(self, layer: Head) -> None:
        """Initialises the head's convolution with a deviation of 0.01, as torchvision does."""
        assert layer.bias is not None
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)


def _first(
    in_channels: int, channels: int, kernel: int | None, norm: bool
) -> tuple[nn.Module, nn.Module]:
    """The first convolution, of stride 2 unless `kernel` is None, and its ReLU."""
    side, stride, padding = (3, 1, 1) if kernel is None else (kernel, 2, 0)
    conv = nn.Conv2d(in_channels, channels, side, stride, padding, bias=not norm)
    relu = nn.ReLU(inplace=True)
    return conv, nn.Sequential(nn.BatchNorm2d(channels), relu) if norm else relu


def _groups(
    channels: int, variant: Variant, width: float, norm: bool, pool_first: bool
) -> Iterator[nn.Module]:
    for number, group in enumerate(variant.groups):
        pools = pool_first or number > 0
        yield nn.MaxPool2d(3, 2, ceil_mode=True) if pools else nn.Identity()
        for squeezed in group:
            expanded = make_divisible(squeezed * EXPANSION * width)
            yield Fire(channels, make_divisible(squeezed * width), expanded, norm)
            channels = 2 * expanded


VARIANTS = {
    "squeezenet1_0": Variant(96, 7, ((16, 16, 32), (32, 48, 48, 64), (64,))),
    "squeezenet1_1": Variant(64, 3, ((16, 16), (32, 32), (48, 48, 64, 64))),
}
# Parameters of the reference, and as the paper's Table 1 has them.
PARAMETERS = {
    "squeezenet1_0": (1_248_424, "1,248,424"),
    "squeezenet1_1": (1_235_496, ""),
}
for _name, _variant in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published("Iandola et al., 2016", _count, f"torchvision:{_name}", _figure)
    register(_name, partial(SqueezeNet, _variant), _published)
