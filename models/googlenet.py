"""GoogLeNet, the first Inception network.

Szegedy et al., "Going Deeper with Convolutions", 2015, in the form of torchvision, whose names,
shapes, rates and initialisation these are. It differs from the paper: batch norm behind each
convolution instead of local response normalisation, 3×3 where the paper's modules have 5×5, and
4×4 pixels by adaptive pooling in the auxiliary heads, which the paper pools by 5×5 with stride 3.

The paper weighs each auxiliary head's loss by 0.3. torchvision's published weights expect images
normalised with 0.5 and 0.5; `transform_input` makes these of images normalised as ImageNet's.
The weights hold auxiliary heads that were never trained.

The small layout begins with a 3×3 convolution of stride 1, and leaves out the first two poolings:
28 pixels then reach the modules as 28, as 224 do in the original.

Axes: N batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import Head, ZooModel, check_positive, check_rates, choose_stem
from .layers.auxiliary import ConvNormRelu, advance, check_half_range, half_range
from .layers.chain import chain, check_side
from .layers.conv import make_divisible, spatial_mean
from .registry import Published, register
from .stages import Stage


@dataclass(frozen=True)
class Row:
    """Channels of a module's four branches: a line of the paper's Table 1."""

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int

    def scaled(self, scale: Callable[[int], int]) -> Row:
        """The row with each number scaled."""
        return Row(*map(scale, astuple(self)))

    @property
    def channels(self) -> int:
        """What the module puts out."""
        return self.one + self.three + self.five + self.pool


ROWS = {
    "3a": Row(64, 96, 128, 16, 32, 32),
    "3b": Row(128, 128, 192, 32, 96, 64),
    "4a": Row(192, 96, 208, 16, 48, 64),
    "4b": Row(160, 112, 224, 24, 64, 64),
    "4c": Row(128, 128, 256, 24, 64, 64),
    "4d": Row(112, 144, 288, 32, 64, 64),
    "4e": Row(256, 160, 320, 32, 128, 128),
    "5a": Row(256, 160, 320, 32, 128, 128),
    "5b": Row(384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches of different reach, side by side. NCHW in, NCHW out, of the same size."""

    def __init__(self, channels_in: int, row: Row) -> None:
        super().__init__()
        self.branch1 = ConvNormRelu(channels_in, row.one)
        self.branch2 = nn.Sequential(
            ConvNormRelu(channels_in, row.reduce_three),
            ConvNormRelu(row.reduce_three, row.three, 3),
        )
        self.branch3 = nn.Sequential(
            ConvNormRelu(channels_in, row.reduce_five), ConvNormRelu(row.reduce_five, row.five, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1), ConvNormRelu(channels_in, row.pool)
        )

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the branches' outputs, one behind the other."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x_NCHW) for branch in branches], 1)


class AuxiliaryHead(nn.Module):
    """Logits from the middle of the network, so that gradients get there: NCHW to NF."""

    def __init__(
        self, channels_in: int, squeezed: int, hidden: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv = ConvNormRelu(channels_in, squeezed)
        self.fc1 = nn.Linear(16 * squeezed, hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x_NF = self.conv(F.adaptive_avg_pool2d(x_NCHW, (4, 4))).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x_NF))))  # type: ignore[no-any-return]


class GoogLeNet(ZooModel):
    """The network: three convolutions, nine modules, the linear layer `fc`; `aux1` and `aux2`.

    In training mode it returns its logits, those of `aux2`, and those of `aux1`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels; at least 15, or any with the
            small stem.
        width: multiplies the channels, which are then rounded to eights.
        dropout: rate before `fc`; the paper has 0.4.
        aux: whether there are auxiliary heads.
        aux_dropout: rate in them.
        stem: `imagenet`, `small` for the small layout, or `auto`: small up to 64 pixels.
        transform_input: images are normalised as ImageNet's, and the weights want 0.5 and 0.5.
    """

    head_name = "fc"
    stem_name = "conv1.conv"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: float = 1.0,
        dropout: float = 0.2,
        aux: bool = True,
        aux_dropout: float = 0.7,
        stem: str = "auto",
        transform_input: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_positive(width=width)
        check_rates(dropout=dropout, aux_dropout=aux_dropout)
        check_half_range(transform_input, in_channels)
        self.transform_input = transform_input

        def scale(channels: int) -> int:
            return make_divisible(channels * width)

        self._build_stem(choose_stem(stem, self.image_size) == "small", scale)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        entry, given = scale(192), {}
        for name, row in ROWS.items():
            scaled = row.scaled(scale)
            self.add_module(f"inception{name}", Inception(entry, scaled))
            given[name] = entry = scaled.channels
        head = partial(AuxiliaryHead, squeezed=scale(128), hidden=scale(1024))
        rest: dict[str, Any] = {"classes": num_classes, "dropout": aux_dropout}
        self.aux1 = head(given["4a"], **rest) if aux else None
        self.aux2 = head(given["4d"], **rest) if aux else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(entry, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.init_head(module)

    def _build_stem(self, small: bool, scale: Callable[[int], int]) -> None:
        if not small:
            check_side("googlenet", self.image_size, 15, "resize them, or choose stem: small")
        kernel, stride = (3, 1) if small else (7, 2)
        pool = nn.Identity if small else partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
        self.conv1 = ConvNormRelu(self.in_channels, scale(64), kernel, stride=stride)
        self.maxpool1 = pool()
        self.conv2 = ConvNormRelu(scale(64), scale(64))
        self.conv3 = ConvNormRelu(scale(64), scale(192), 3)
        self.maxpool2 = pool()

    def init_head(self, layer: Head) -> None:
        """Initialises any layer's weights as torchvision does; biases stay PyTorch's."""
        nn.init.normal_(layer.weight, std=0.01)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Paths of the layers that give logits, in the order of the outputs."""
        return ("fc",) if self.aux1 is None else ("fc", "aux2.fc2", "aux1.fc2")

    def key_map(self, name: str) -> str | None:  # type: ignore[override]
        """Published names are ours; a network without auxiliary heads passes theirs over."""
        return None if self.aux1 is None and name.startswith(("aux1.", "aux2.")) else name

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``inception3.0``, ``inception3.1``, … ``inception5.1`` and ``head``.

        A pooling between groups belongs to the block behind it.
        """
        convolutions = (self.conv1, self.conv2, self.conv3)
        stages = [Stage("stem", self._stem, convolutions)]
        pools = {"4a": self.maxpool3, "5a": self.maxpool4}
        heads = {"4a": self.aux1, "4d": self.aux2}
        for name in ROWS:
            block, head = self.get_submodule(f"inception{name}"), heads.get(name)
            layers = (pools[name], block) if name in pools else (block,)
            used = (block,) if head is None else (block, head)
            number = "abcde".index(name[1])
            stages.append(
                Stage(f"inception{name[0]}.{number}", partial(advance, layers, head), used)
            )
        classify = partial(advance, (spatial_mean, self.dropout, self.fc), None)
        return [*stages, Stage("head", classify, (self.fc,))]

    def _stem(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        if self.transform_input:
            x_NCHW = half_range(x_NCHW)
        layers = (self.conv1, self.maxpool1, self.conv2, self.conv3, self.maxpool2)
        return chain(layers, x_NCHW)


# Without auxiliary heads 6,624,904. The paper states no total: the layers of its Table 1, which
# leaves those heads out too, add up to 6.8M.
register(
    "googlenet",
    GoogLeNet,
    Published(
        "Szegedy et al., 2015", 13_004_888, "torchvision:googlenet", "6.8M (table 1, without aux)"
    ),
)
