"""A plain convolutional network for small images, with every layer picked by name.

Of no paper: convolutions of 3×3 in groups, the image halved between groups by pooling (as in
Simonyan and Zisserman, 2015), then the mean over all pixels and a linear layer. It is for trying
layers against each other: norms, kernels, activations, gates, dropouts and initialisers of
`layers/` are options, as are residual connections (He et al., 2016) and dilation (Yu and Koltun,
2016).

Axes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from .base import Head, ZooModel, check_rates
from .layers.activations import activation
from .layers.conv import spatial_mean
from .layers.dropouts import ConcreteDropout, DropBlock, DropConnect, dropout
from .layers.gates import gate
from .layers.init import INITIALISERS, initialise, zero_gamma
from .layers.norms import convolution, norm
from .names import choose
from .registry import register
from .stages import Stage

IN_BLOCKS = ("spatial", "dropblock", "path")
"""Kinds of dropout that each block has."""
IN_HEAD = ("standard", "dropconnect", "concrete")
"""Kinds of dropout that the head has."""
STARTS = tuple(name for name in INITIALISERS if name != "zero")
"""Initialisers of a whole network; from zero it could not learn."""


@dataclass(frozen=True)
class Style:
    """The layers of a block, by name; as `ConvNet` has them."""

    norm: str
    kernels: str
    activation: str
    gate: str
    dropout: float
    dropout_kind: str
    block_size: int
    dilation: int
    residual: bool


class Block(nn.Module):
    """Convolution, norm, activation, gate and dropout. NCHW in, NCHW out.

    With a residual connection the gated norm is added to the input before the activation.

    Args:
        channels_in: C of the input.
        channels: C of the output; the residual connection needs them to be equal.
        style: which layers.
        pool: halve the image first, rounding down.
    """

    last_norm: str | None

    def __init__(self, channels_in: int, channels: int, style: Style, pool: bool = False) -> None:
        super().__init__()
        self.residual = style.residual and channels_in == channels and not pool
        self.last_norm = "norm" if self.residual else None
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv = convolution(
            style.kernels,
            channels_in,
            channels,
            3,
            padding=style.dilation,
            dilation=style.dilation,
            bias=style.norm == "none",
        )
        self.norm = norm(style.norm, channels)
        self.activation = activation(style.activation, channels, inplace=True)
        self.gate = gate(style.gate, channels)
        path = style.dropout_kind == "path"
        self.path = dropout("path", style.dropout if path and self.residual else 0.0)
        self.dropout = _block_dropout(style)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        x_NCHW = self.pool(x_NCHW)
        y_NCHW = self.norm(self.conv(x_NCHW))
        if self.residual:
            y_NCHW = self.activation(x_NCHW + self.path(self.gate(y_NCHW)))
        else:
            y_NCHW = self.gate(self.activation(y_NCHW))
        return self.dropout(y_NCHW)  # type: ignore[no-any-return]


def _block_dropout(style: Style) -> nn.Module:
    if style.dropout_kind not in ("spatial", "dropblock") or not style.dropout:
        return nn.Identity()
    if style.dropout_kind == "dropblock":
        return DropBlock(style.dropout, style.block_size)
    return dropout(style.dropout_kind, style.dropout)


class ConvNet(ZooModel):
    """The network: `stem`, `group1` … and the linear layer `fc`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        widths: channels of each group; there is a halving between two.
        depth: convolutions in each group.
        norm: one of `layers.norms.NORMS`.
        kernels: one of `layers.norms.KERNELS`.
        activation: one of `layers.activations.ACTIVATIONS`; `filter_response` asks for `tlu`.
        gate: one of `layers.gates.GATES`.
        dropout: rate; 0 is none of any kind.
        dropout_kind: `standard` before the classifier; `concrete` likewise, its rate learned from
            where `dropout` starts it; `dropconnect` on its weights; `spatial` or `dropblock`
            behind every block; `path` (stochastic depth) on every residual branch.
        block_size: side, in pixels, of what `dropblock` drops.
        dilation: of every convolution but the stem's.
        residual: add a block's input where its shape stays: everywhere but at the halvings.
        init: one of `STARTS`.
        zero_gamma: let every residual branch start at zero.
    """

    head_name = "fc"
    stem_name = "stem.conv"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 2,
        norm: str = "batch",
        kernels: str = "plain",
        activation: str = "relu",
        gate: str = "none",
        dropout: float = 0.0,
        dropout_kind: str = "standard",
        block_size: int = 5,
        dilation: int = 1,
        residual: bool = False,
        init: str = "kaiming_normal",
        zero_gamma: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        style = Style(
            norm, kernels, activation, gate, dropout, dropout_kind, block_size, dilation, residual
        )
        _check_style(style, init, zero_gamma)
        _check_layout(widths, depth, self.image_size, instance=norm == "instance")
        self.stem = Block(in_channels, widths[0], _stem_style(style))
        self.groups = [f"group{number}" for number in range(1, len(widths) + 1)]
        entries = (widths[0], *widths)
        for number, name in enumerate(self.groups):
            first = Block(entries[number], widths[number], style, pool=number > 0)
            rest = (Block(widths[number], widths[number], style) for _ in range(depth - 1))
            self.add_module(name, nn.Sequential(first, *rest))
        self.dropout = _head_dropout(style)
        self.fc = nn.Linear(widths[-1], num_classes)
        self._init = init
        self._initialise(zero_gamma)

    def _initialise(self, zero: bool) -> None:
        initialise(self, self._init)
        if zero:
            zero_gamma(self)

    def init_head(self, layer: Head) -> None:
        """Initialises a classifier by the name that the network was given."""
        initialise(layer, self._init)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` … and ``head``."""
        blocks = [
            Stage(f"{name}.{number}", block, (block,))
            for name in self.groups
            for number, block in enumerate(self.get_submodule(name).children())
        ]
        head = Stage("head", self._classify, (self.dropout, self.fc))
        return [Stage("stem", self.stem, (self.stem,)), *blocks, head]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        features_NC = spatial_mean(x_NCHW)
        if isinstance(self.dropout, DropConnect | ConcreteDropout):
            return self.dropout(features_NC, self.fc)  # type: ignore[no-any-return]
        return self.fc(self.dropout(features_NC))  # type: ignore[no-any-return]


def _stem_style(style: Style) -> Style:
    return replace(style, gate="none", dropout=0.0, dilation=1, residual=False)


def _head_dropout(style: Style) -> nn.Module:
    if style.dropout_kind not in IN_HEAD or not style.dropout:
        return nn.Identity()
    if style.dropout_kind == "dropconnect":
        return DropConnect(style.dropout)
    return dropout(style.dropout_kind, style.dropout)


def _check_style(style: Style, init: str, zero_gamma: bool) -> None:
    """Refuses what no layer refuses itself, and combinations without a meaning."""
    check_rates(dropout=style.dropout)
    choose("initialiser", init, dict.fromkeys(STARTS))
    choose("dropout_kind", style.dropout_kind, dict.fromkeys((*IN_BLOCKS, *IN_HEAD)))
    for name, value in (("dilation", style.dilation), ("block_size", style.block_size)):
        if value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, but got {value}")
    if zero_gamma and not style.residual:
        raise ValueError(
            "zero_gamma needs residual branches, but residual is false; "
            "set residual: true, or leave zero_gamma out"
        )
    if style.dropout_kind == "path" and not style.residual:
        raise ValueError(
            "dropout_kind path drops residual branches, but residual is false; "
            "set residual: true, or choose spatial or dropblock"
        )


def _check_layout(
    widths: Sequence[int], depth: int, size: tuple[int, int], *, instance: bool
) -> None:
    """Refuses empty networks, and images that the halvings leave nothing of."""
    if not widths or min(widths) < 1:
        raise ValueError(
            f"widths must be one whole number >= 1 for each group, but got {tuple(widths)}"
        )
    if depth < 1:
        raise ValueError(f"depth must be a whole number >= 1, but got {depth}")
    halvings = len(widths) - 1
    left = (size[0] >> halvings, size[1] >> halvings)
    if min(left) < 1 or (instance and left == (1, 1)):
        least = "2 pixels for instance norm" if instance else "1 pixel"
        raise ValueError(
            f"an image must keep {least} after {halvings} halvings, one between two groups, but "
            f"{size[0]}×{size[1]} does not; give fewer widths, or larger images"
        )


register("convnet", ConvNet)
