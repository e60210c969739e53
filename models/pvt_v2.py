"""Pyramid vision transformers, second version.

Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", 2022. Patches overlap;
four groups of blocks have maps that halve; keys and values come from a map reduced by a strided
convolution (Wang et al., "Pyramid Vision Transformer", 2021, section 3.3), so that attention is
cheap on large maps; a depthwise convolution inside the MLP tells positions by its zero padding, so
no embedding of them is needed and images may have any size.

Names, shapes and initialisation are timm's, but that its `stages` are `groups` here; its weights
and the authors' load through `PyramidVisionTransformer.key_map`. Stochastic depth is the authors'.

The published stem quarters the image and then maps are reduced 8, 4, 2 and 1 times, to 7×7 keys in
every group for 224 pixels. The small stem keeps the size, and reductions are half of those: an
image of 28 pixels has 7×7 keys too, except 4×4 in the last group.

Axes: N batch, C channels, H height, W width, L = H·W tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_rates, choose_stem
from .layers.attention import attend, join_heads, split_heads
from .layers.chain import chain, check_side
from .layers.conv import spatial_mean
from .layers.drop_path import DropPath
from .layers.maps import ConvEmbed, MapNorm, to_map, to_tokens
from .layers.patches import check_whole
from .registry import Published, register
from .stages import Stage

HEADS = (1, 2, 5, 8)
REDUCTIONS = {"imagenet": (8, 4, 2, 1), "small": (4, 2, 1, 1)}
EPSILON = 1e-6
"""Of the norms in and behind blocks; PyTorch's own is that of the others."""


class Attention(nn.Module):
    """Attention to the map's own tokens, after a reduction of their number by its square."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Module | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x_NLC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Tokens of a map of `size` (H, W) to as many."""
        source_NSC = x_NLC
        if self.sr is not None:
            source_NSC = self.norm(to_tokens(self.sr(to_map(x_NLC, size))))
        k_NSC, v_NSC = self.kv(source_NSC).chunk(2, -1)
        q_NHLE = split_heads(self.q(x_NLC), self.heads)
        y_NHLE = attend(q_NHLE, split_heads(k_NSC, self.heads), split_heads(v_NSC, self.heads))
        return self.proj(join_heads(y_NHLE))  # type: ignore[no-any-return]


class ConvMlp(nn.Module):
    """Two linear layers, with a depthwise 3×3 convolution and GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x_NLC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Tokens of a map of `size` (H, W) to as many."""
        y_NCHW = self.dwconv(to_map(self.fc1(x_NLC), size))
        return self.fc2(self.act(to_tokens(y_NCHW)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the MLP, each after a norm and beside a shortcut. NCHW in, NCHW out."""

    def __init__(
        self, channels: int, heads: int, reduction: int, expand: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPSILON)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=EPSILON)
        self.mlp = ConvMlp(channels, channels * expand)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        size, x_NLC = x_NCHW.shape[2:], to_tokens(x_NCHW)
        x_NLC = x_NLC + self.drop_path(self.attn(self.norm1(x_NLC), size))
        x_NLC = x_NLC + self.drop_path(self.mlp(self.norm2(x_NLC), size))
        return to_map(x_NLC, size)


class Group(nn.Module):
    """Blocks on maps of one size: `downsample` before them but in the first group, `norm` after."""

    def __init__(self, embed: ConvEmbed | None, blocks: Sequence[Block], channels: int) -> None:
        super().__init__()
        self.downsample = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = MapNorm(channels, eps=EPSILON)

    def stages(self, name: str) -> list[Stage]:
        """A stage a block; the first halves the map before it, the last normalises it after."""
        parts: list[tuple[nn.Module, ...]] = [(block,) for block in self.blocks]
        if self.downsample is not None:
            parts[0] = (self.downsample, *parts[0])
        parts[-1] = (*parts[-1], self.norm)
        return [
            Stage(f"{name}.{number}", partial(chain, modules), modules)
            for number, modules in enumerate(parts)
        ]


@dataclass(frozen=True)
class Variant:
    """A network of the paper's series, B0 to B5."""

    head_dim: int
    """Channels of an attention head; the groups have 1, 2, 5 and 8 heads."""
    depths: tuple[int, int, int, int]
    """Blocks of each group."""
    expand: tuple[int, int, int, int] = (8, 8, 4, 4)
    """How much wider each group's MLPs are inside."""


class PyramidVisionTransformer(ZooModel):
    """The network: `patch_embed`, `groups`, and the linear layer `head`.

    Args:
        variant: its size.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (7×7 of stride 4), `small` (3×3 of stride 1, and half the reductions), or
            `auto`, which takes `small` up to 64 pixels.
        head_dim: channels of an attention head; instead of the variant's.
        depths: blocks of the four groups; instead of the variant's.
        dropout: rate before the classifier.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the
            first.

    Raises:
        ValueError: for an option out of its bounds, or an image too small for the stem.
    """

    head_name = "head"
    stem_name = "patch_embed.proj"

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        head_dim: int | None = None,
        depths: Sequence[int] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        head_dim = variant.head_dim if head_dim is None else head_dim
        depths = variant.depths if depths is None else tuple(depths)
        stem = choose_stem(stem, self.image_size)
        _check(head_dim, depths)
        check_rates(dropout=dropout, drop_path=drop_path)
        if stem == "imagenet":  # a quarter of 29, rounded up, is what the first reduction takes
            check_side("PVT v2", self.image_size, 29, "take stem: small, or larger images")
        channels = [head_dim * heads for heads in HEADS]
        shape = (7, 4, 3) if stem == "imagenet" else (3, 1, 1)
        self.patch_embed = ConvEmbed(in_channels, channels[0], *shape)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.groups = nn.Sequential()
        for group, width in enumerate(channels):
            embed = ConvEmbed(channels[group - 1], width, 3, 2, 1) if group else None
            form = (width, HEADS[group], REDUCTIONS[stem][group], variant.expand[group])
            blocks = [Block(*form, next(rates)) for _ in range(depths[group])]
            self.groups.append(Group(embed, blocks, width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self.init_head(module)

    def init_head(self, layer: Head) -> None:
        """Initialises a linear layer or a convolution as timm and the authors do."""
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[0, 0].numel() * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        else:
            nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``group1.0`` … ``group4.n`` and ``head``; maps NCHW between them."""
        stages = [Stage("stem", self.patch_embed, (self.patch_embed,))]
        for number, group in enumerate(self.groups, 1):
            assert isinstance(group, Group)
            stages.extend(group.stages(f"group{number}"))
        return [*stages, Stage("head", self._classify, (self.head,))]

    def _classify(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(spatial_mean(x_NCHW)))  # type: ignore[no-any-return]

    @staticmethod
    def key_map(name: str) -> str | None:
        """Renames timm's keys and the authors'.

        timm's ``stages.0.blocks.1.`` is ``groups.0.blocks.1.``; the authors' ``block1.1.``,
        ``norm1.`` and ``patch_embed2.`` are its block, ``groups.0.norm.`` and
        ``groups.1.downsample.``.
        """
        name = re.sub(r"^stages\.", "groups.", name).replace(".dwconv.dwconv.", ".dwconv.")
        if match := re.match(r"(block|norm|patch_embed)(\d)\.", name):
            kind, number, rest = match[1], int(match[2]) - 1, name[match.end() :]
            if kind == "patch_embed" and number == 0:
                return f"patch_embed.{rest}"
            part = {"block": "blocks", "norm": "norm", "patch_embed": "downsample"}[kind]
            return f"groups.{number}.{part}.{rest}"
        return name


def _check(head_dim: int, depths: Sequence[int]) -> None:
    check_whole(head_dim=head_dim)
    if len(depths) != len(HEADS):
        raise ValueError(f"depths must be {len(HEADS)} numbers of blocks, but got {depths!r}")
    for group, depth in enumerate(depths, 1):
        check_whole(**{f"depths of group {group}": depth})


VARIANTS = {
    "pvt_v2_b0": Variant(32, (2, 2, 2, 2)),
    "pvt_v2_b1": Variant(64, (2, 2, 2, 2)),
    "pvt_v2_b2": Variant(64, (3, 4, 6, 3)),
}
# Parameters of the reference, and as the paper has them. It first counted those of B0 and B1 too
# low; the authors corrected them (whai362/PVT, commit 0e7153b).
PARAMETERS = {
    "pvt_v2_b0": (3_666_760, "3.4M, corrected to 3.7M"),
    "pvt_v2_b1": (14_009_000, "13.1M, corrected to 14.0M"),
    "pvt_v2_b2": (25_362_856, "25.4M"),
}
for _name, _variant in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published("Wang et al., 2022", _count, f"timm:{_name}", _figure)
    register(_name, partial(PyramidVisionTransformer, _variant), _published)
