"""Swin transformers: attention within windows, which shift from block to block.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021. Unlike
a vision transformer's, its maps shrink from group to group as a convolutional network's do
(section 3.1), and its positions are relative, a bias for each offset within a window (section 3.2).
Names, shapes, padding, rates and initialisation are torchvision's, so that its weights load as
they are; timm's load through `SwinTransformer.key_map`, and weights trained with another window by
resampling their biases.

Patches of 4 pixels and windows of 7 patches are made for 224 pixels. Up to 64 pixels `patch` is 2
and `window` 7 or 4, whichever divides the grid of patches: 14, 7, 4 and 2 patches a side for
images of 28 pixels with windows of 7, 7, 4 and 2, and 16, 8, 4 and 2 for 32 with 4, 4, 4 and 2.
A window that is given, and larger than a group's map, pads the map, as torchvision does.

Axes: N batch, H height, W width, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .base import Head, ZooModel, check_rates
from .layers.drop_path import DropPath
from .layers.patches import SMALL_SIDE, check_whole, fit_patch, resample_grid
from .layers.window_attention import WindowAttention
from .registry import Published, register
from .stages import Stage


@dataclass(frozen=True)
class Rates:
    """Drop rates of a block."""

    dropout: float
    attention: float
    path: float


class Block(nn.Module):
    """Window attention, then an MLP, each after a norm and beside a shortcut. NHWC in, NHWC out."""

    def __init__(self, channels: int, head_dim: int, window: int, shift: int, rates: Rates) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        heads, dropout = channels // head_dim, rates.dropout
        self.attn = WindowAttention(channels, heads, window, shift, dropout, rates.attention)
        self.stochastic_depth = DropPath(rates.path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * channels, channels),
            nn.Dropout(dropout),
        )

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        """Returns the block's output (equation 3)."""
        x_NHWC = x_NHWC + self.stochastic_depth(self.attn(self.norm1(x_NHWC)))
        return x_NHWC + self.stochastic_depth(self.mlp(self.norm2(x_NHWC)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Joins 2×2 patches into one of twice the channels. NHWC in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        """Returns the map halved, rounded up."""
        x_NHWC = F.pad(x_NHWC, (0, 0, 0, x_NHWC.shape[2] % 2, 0, x_NHWC.shape[1] % 2))
        left, right = x_NHWC[:, :, 0::2], x_NHWC[:, :, 1::2]
        corners = (left[:, 0::2], left[:, 1::2], right[:, 0::2], right[:, 1::2])
        return self.reduction(self.norm(torch.cat(corners, -1)))  # type: ignore[no-any-return]


class ChannelsLast(nn.Module):
    """NCHW to NHWC."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the same numbers."""
        return x_NCHW.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Variant:
    """A network of section 3.3, and its rate of stochastic depth at the last block."""

    embed_dim: int
    """Channels of the first group; each further group has twice as many."""
    depths: tuple[int, ...]
    """Blocks of each group."""
    drop_path: float


class SwinTransformer(ZooModel):
    """The network: `features` (patches, groups of blocks, merging between them), `norm`, `head`.

    Args:
        variant: its size.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        patch: side of a patch in pixels, which divides both sides of the image; `auto` is 2 up
            to 64 pixels, else 4.
        window: side of a window in patches; `auto` is 7, and up to 64 pixels the one of 7 and 4
            that divides the grid, but no larger than a group's map.
        embed_dim: channels of the first group, a multiple of `head_dim`; instead of the variant's.
        depths: blocks of each group; instead of the variant's.
        head_dim: channels of an attention head.
        dropout: rate after attention and after each linear layer of the MLPs.
        attention_dropout: rate of dropping a patch from another's attention.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the
            first; instead of the variant's.
    """

    head_name = "head"
    stem_name = "features.0.0"

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        patch: int | Literal["auto"] = "auto",
        window: int | Literal["auto"] = "auto",
        embed_dim: int | None = None,
        depths: Sequence[int] | None = None,
        head_dim: int = 32,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        channels = variant.embed_dim if embed_dim is None else embed_dim
        depths = variant.depths if depths is None else tuple(depths)
        drop_path = variant.drop_path if drop_path is None else drop_path
        _check(channels, head_dim, depths)
        check_rates(dropout=dropout, attention_dropout=attention_dropout, drop_path=drop_path)
        patch, grid = fit_patch(patch, self.image_size, small=2, large=4)
        windows = fit_windows(window, self.image_size, grid, len(depths))
        stem = (
            nn.Conv2d(in_channels, channels, patch, patch),
            ChannelsLast(),
            nn.LayerNorm(channels),
        )
        rates = Rates(dropout, attention_dropout, drop_path)
        self.features = nn.Sequential(
            nn.Sequential(*stem), *_groups(channels, head_dim, depths, windows, rates)
        )
        channels = channels * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                self.init_head(module)

    def init_head(self, layer: Head) -> None:
        """Initialises a linear layer as torchvision does."""
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` …, ``merge1``, ``group2.0`` … and ``head``; NHWC between."""
        stem, *rest = self.features
        stages = [Stage("stem", stem, (stem,))]
        for number, part in enumerate(rest):
            group = number // 2 + 1
            if isinstance(part, PatchMerging):
                stages.append(Stage(f"merge{group}", part, (part,)))
            else:
                blocks = enumerate(part.children())
                stages.extend(Stage(f"group{group}.{n}", block, (block,)) for n, block in blocks)
        return [*stages, Stage("head", self._classify, (self.norm, self.head))]

    def _classify(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x_NHWC).mean((1, 2)))  # type: ignore[no-any-return]

    @staticmethod
    def key_map(name: str) -> str | None:
        """Renames timm's keys; torchvision's are ours."""
        if match := re.match(r"layers\.(\d+)\.(blocks|downsample)\.", name):
            part = 2 * int(match[1]) + (match[2] == "blocks")
            name = f"features.{part}.{name[match.end() :]}"
        for theirs, ours in _TIMM.items():
            name = name.replace(theirs, ours)
        return name

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resamples the biases of another window (section 3.2), and fills in what is constant."""
        notes = []
        for path, module in self.named_modules():
            if not isinstance(module, WindowAttention):
                continue
            state[f"{path}.relative_position_index"] = module.relative_position_index
            name, side = f"{path}.relative_position_bias_table", 2 * module.window - 1
            theirs = state.get(name)
            if theirs is None or theirs.ndim != 2:
                continue
            old = round(len(theirs) ** 0.5)
            if old != side and old * old == len(theirs):
                state[name] = resample_grid(theirs, (old, old), (side, side))
                notes.append(f"{path}: biases are resampled from {old}×{old} to {side}×{side}")
        return notes


_TIMM = {
    "patch_embed.proj.": "features.0.0.",
    "patch_embed.norm.": "features.0.2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
    "head.fc.": "head.",
}


def fit_windows(
    window: int | str, image_size: tuple[int, int], grid: tuple[int, int], groups: int
) -> list[int]:
    """The side of each group's windows, in patches; see `SwinTransformer`.

    Raises:
        ValueError: if `window` is neither `auto` nor a whole number of at least 1.
    """
    if window != "auto":
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ValueError(f"window must be auto or a whole number >= 1, but got {window!r}")
        return [window] * groups
    if max(image_size) > SMALL_SIDE:
        return [7] * groups
    largest = 4 if any(side % 7 for side in grid) else 7
    # A map's side halves, rounded up, from group to group.
    return [min(largest, -(-min(grid) // 2**group)) for group in range(groups)]


def _groups(
    channels: int, head_dim: int, depths: Sequence[int], windows: Sequence[int], rates: Rates
) -> Iterator[nn.Module]:
    made, last = 0, max(1, sum(depths) - 1)
    for group, (depth, window) in enumerate(zip(depths, windows, strict=True)):
        if group:
            yield PatchMerging(channels)
            channels *= 2
        blocks = []
        for number in range(depth):
            own = Rates(rates.dropout, rates.attention, rates.path * made / last)
            blocks.append(Block(channels, head_dim, window, number % 2 * (window // 2), own))
            made += 1
        yield nn.Sequential(*blocks)


def _check(channels: int, head_dim: int, depths: Sequence[int]) -> None:
    check_whole(embed_dim=channels, head_dim=head_dim)
    if not depths:
        raise ValueError("depths must name at least one group of blocks, but is empty")
    for group, depth in enumerate(depths, 1):
        check_whole(**{f"depths of group {group}": depth})
    if channels % head_dim:
        raise ValueError(
            f"head_dim must divide embed_dim, but got head_dim={head_dim} and "
            f"embed_dim={channels}; {head_dim * max(1, round(channels / head_dim))} is the nearest"
        )


VARIANTS = {
    "swin_tiny": ("swin_t", Variant(96, (2, 2, 6, 2), 0.2)),
    "swin_small": ("swin_s", Variant(96, (2, 2, 18, 2), 0.3)),
    "swin_base": ("swin_b", Variant(128, (2, 2, 18, 2), 0.5)),
}
# Parameters of the reference, and as the paper's Table 1 has them.
PARAMETERS = {
    "swin_tiny": (28_288_354, "29M"),
    "swin_small": (49_606_258, "50M"),
    "swin_base": (87_768_224, "88M"),
}
for _name, (_reference, _variant) in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published("Liu et al., 2021", _count, f"torchvision:{_reference}", _figure)
    register(_name, partial(SwinTransformer, _variant), _published)
