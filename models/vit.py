"""Vision transformers: an image as a sequence of patches, which a token of its own sums up.

Dosovitskiy et al., "An Image Is Worth 16x16 Words: Transformers for Image Recognition at Scale",
2021: equations 1 to 4; Table 1 has base and large. Tiny and small are of Steiner et al., "How to
Train Your ViT?", 2022. Names, shapes and initialisation are timm's, so that its weights load as
they are; torchvision's load through `VisionTransformer.key_map`. Weights that were trained on
images of another size load too: their positions are resampled (section 3.2 of the paper).

Patches of 16 pixels leave four of them in an image of 28 or 32 pixels, so there `patch` is 4
unless the file says otherwise.

Axes: N batch, C channels, H height, W width, T tokens, A attention heads, D channels of a head.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from .base import Head, ZooModel, check_rates
from .layers.drop_path import DropPath
from .layers.patches import check_whole, fit_patch, resample_grid
from .registry import Published, register
from .stages import Stage

_norm = partial(nn.LayerNorm, eps=1e-6)


class Attention(nn.Module):
    """Self-attention with several heads (Vaswani et al., 2017). NTC in, NTC out."""

    def __init__(self, channels: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Returns, for each token, a mixture of all tokens' values."""
        # Cut before the heads are told apart: their gradients are then joined by a single copy.
        q_NATD, k_NATD, v_NATD = (
            part_NTC.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part_NTC in self.qkv(x_NTC).chunk(3, -1)
        )
        rate = self.attention_dropout if self.training else 0.0
        y_NATD = F.scaled_dot_product_attention(q_NATD, k_NATD, v_NATD, dropout_p=rate)
        return self.proj_drop(self.proj(y_NATD.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers around a GELU, four times as wide between them. NTC in, NTC out."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Returns the tokens, each transformed alone."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x_NTC)))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the MLP, each after a norm and beside a shortcut. NTC in, NTC out."""

    def __init__(
        self, channels: int, heads: int, dropout: float, attention_dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.attn = Attention(channels, heads, dropout, attention_dropout)
        self.norm2 = _norm(channels)
        self.mlp = Mlp(channels, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Returns the block's output (equations 2 and 3)."""
        x_NTC = x_NTC + self.drop_path(self.attn(self.norm1(x_NTC)))
        return x_NTC + self.drop_path(self.mlp(self.norm2(x_NTC)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """A linear map of each patch, row by row. NCHW in, NTC out."""

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch, patch)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns a token for each patch."""
        return self.proj(x_NCHW).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Variant:
    """A line of the papers' tables."""

    embed_dim: int
    """Channels of a token."""
    depth: int
    """Blocks."""
    heads: int
    drop_path: float = 0.0
    """Rate of stochastic depth at the last block."""


class VisionTransformer(ZooModel):
    """The network: patches and positions, `blocks`, and the linear layer `head`.

    Args:
        variant: its size.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels; the network takes no other.
        patch: side of a patch in pixels, which divides both sides of the image; `auto` is 4 up
            to 64 pixels, else 16.
        embed_dim: channels of a token, a multiple of `heads`; instead of the variant's.
        depth: blocks; instead of the variant's.
        heads: attention heads; instead of the variant's.
        dropout: rate after each linear layer but queries', keys' and values', and after the
            positions (appendix B.1).
        attention_dropout: rate of dropping a token from another's attention.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the
            first; instead of the variant's.

    Attributes:
        patch: side of a patch in pixels.
        grid: (rows, columns) of patches.
    """

    head_name = "head"
    stem_name = "patch_embed.proj"
    undecayed: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")
    """Own parameters that weight decay leaves alone."""
    extra_tokens: ClassVar[int] = 1
    """Tokens that are no patch, and come before them."""

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        patch: int | Literal["auto"] = "auto",
        embed_dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        channels = variant.embed_dim if embed_dim is None else embed_dim
        depth = variant.depth if depth is None else depth
        heads = variant.heads if heads is None else heads
        drop_path = variant.drop_path if drop_path is None else drop_path
        _check(channels, depth, heads)
        check_rates(dropout=dropout, attention_dropout=attention_dropout, drop_path=drop_path)
        self.patch, self.grid = fit_patch(patch, self.image_size, small=4, large=16)
        length = self.extra_tokens + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.empty(1, length, channels))
        self.patch_embed = PatchEmbed(in_channels, channels, self.patch)
        self.pos_drop = nn.Dropout(dropout)
        rates = [drop_path * number / max(1, depth - 1) for number in range(depth)]
        self.blocks = nn.Sequential(
            *(Block(channels, heads, dropout, attention_dropout, rate) for rate in rates)
        )
        self.norm = _norm(channels)
        self._build_readout(channels)
        self._initialise()

    def _build_readout(self, channels: int) -> None:
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.head = nn.Linear(channels, self.num_classes)

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                self.init_head(module)

    def init_head(self, layer: Head) -> None:
        """Initialises a linear layer as timm does."""
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def first_tokens(self) -> tuple[nn.Parameter, ...]:
        """The tokens [1, 1, C] that are no patch, in order."""
        return (self.cls_token,)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``blocks.0`` … and ``head``; tokens NTC pass between them."""
        loose = (*self.first_tokens(), self.pos_embed)
        stem = Stage("stem", self._embed, (self.patch_embed,), loose)
        blocks = [Stage(f"blocks.{n}", block, (block,)) for n, block in enumerate(self.blocks)]
        return [stem, *blocks, self._head_stage()]

    def _head_stage(self) -> Stage:
        return Stage("head", self._classify, (self.norm, self.head))

    def _embed(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        if tuple(x_NCHW.shape[-2:]) != self.image_size:
            raise ValueError(
                f"images must have {self.image_size[0]}×{self.image_size[1]} pixels, for which "
                f"this network was built, but have {x_NCHW.shape[-2]}×{x_NCHW.shape[-1]}; resize "
                "them, or build it with their image_size: weights of another size load too"
            )
        x_NTC = self.patch_embed(x_NCHW)
        first = [token.expand(x_NTC.shape[0], -1, -1) for token in self.first_tokens()]
        return self.pos_drop(torch.cat([*first, x_NTC], 1) + self.pos_embed)  # type: ignore[no-any-return]

    def _classify(self, x_NTC: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x_NTC[:, 0]))  # type: ignore[no-any-return]

    @staticmethod
    def key_map(name: str) -> str | None:
        """Renames torchvision's keys; timm's are ours, and the two have none in common.

        torchvision's one matrix for queries, keys and values is laid out as ours. Its published
        files call the MLP's layers ``linear_1`` and ``linear_2``, its code ``0`` and ``3``.
        """
        if match := _TORCHVISION_BLOCK.fullmatch(name):
            number, part, kind = match.groups()
            return f"blocks.{number}.{_TORCHVISION_PARTS[part]}.{kind}"
        for theirs, ours in _TORCHVISION.items():
            if name == theirs or name.startswith(f"{theirs}."):
                return ours + name.removeprefix(theirs)
        return name

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Resamples positions of another image size; theirs must have been square.

        What is no square grid, or has other channels, stays as it is and is refused later.
        """
        theirs, extra = state.get("pos_embed"), self.extra_tokens
        if theirs is None or theirs.ndim != 3 or theirs.shape[:2] == self.pos_embed.shape[:2]:
            return []
        side = math.isqrt(max(0, theirs.shape[1] - extra))
        if not side or side * side + extra != theirs.shape[1]:
            return []
        resampled = resample_grid(theirs[0, extra:], (side, side), self.grid)
        state["pos_embed"] = torch.cat([theirs[0, :extra], resampled])[None]
        rows, columns = self.grid
        return [f"positions are resampled from {side}×{side} to {rows}×{columns} patches"]


_TORCHVISION = {
    "class_token": "cls_token",
    "conv_proj": "patch_embed.proj",
    "encoder.pos_embedding": "pos_embed",
    "encoder.ln": "norm",
    "heads.head": "head",
}
_TORCHVISION_PARTS = {
    "ln_1": "norm1",
    "self_attention.in_proj": "attn.qkv",
    "self_attention.out_proj": "attn.proj",
    "ln_2": "norm2",
    **dict.fromkeys(("mlp.0", "mlp.linear_1"), "mlp.fc1"),
    **dict.fromkeys(("mlp.3", "mlp.linear_2"), "mlp.fc2"),
}
_TORCHVISION_BLOCK = re.compile(
    rf"encoder\.layers\.encoder_layer_(\d+)\.({'|'.join(map(re.escape, _TORCHVISION_PARTS))})"
    r"[._](weight|bias)"
)


def _check(channels: int, depth: int, heads: int) -> None:
    check_whole(embed_dim=channels, depth=depth, heads=heads)
    if channels % heads:
        raise ValueError(
            f"heads must divide embed_dim, but got heads={heads} and embed_dim={channels}; "
            f"{heads * max(1, round(channels / heads))} is the nearest embed_dim"
        )


VARIANTS = {
    "vit_tiny_patch16": Variant(192, 12, 3),
    "vit_small_patch16": Variant(384, 12, 6),
    "vit_base_patch16": Variant(768, 12, 12),
    "vit_large_patch16": Variant(1024, 24, 16),
}
# Paper, parameters of the reference, and as the paper has them.
PUBLISHED = {
    "vit_tiny_patch16": ("Steiner et al., 2022", 5_717_416, "5.8M"),
    "vit_small_patch16": ("Steiner et al., 2022", 22_050_664, "22.2M"),
    "vit_base_patch16": ("Dosovitskiy et al., 2021", 86_567_656, "86M"),
    "vit_large_patch16": ("Dosovitskiy et al., 2021", 304_326_632, "307M"),
}
for _name, _variant in VARIANTS.items():
    _paper, _count, _figure = PUBLISHED[_name]
    _published = Published(_paper, _count, f"timm:{_name}_224", _figure)
    register(_name, partial(VisionTransformer, _variant), _published)
