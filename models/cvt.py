"""Convolutional vision transformers.

Wu et al., "CvT: Introducing Convolutions to Vision Transformers", 2021. Tokens come from strided
convolutions, at the start and between the three groups of blocks (section 3.1), and queries, keys
and values from a depthwise convolution with batch norm before their linear layer, of stride 2 for
keys and values (section 3.2). There are no positions, so images may have any size.

Names, shapes and initialisation are those of the authors' code (github.com/microsoft/CvT), whose
weights load as they are; the library transformers' load through `CvT.key_map`, though its code
puts the exact GELU to them. Read in the authors' code, not in the paper: scores are divided by the
root of all channels, not of a head's; the activation is x·σ(1.702 x), an approximation of GELU;
stochastic depth is in the last group alone. With the class token, which the last group adds, the
last block's convolution for queries has no effect on logits, and its gradient is zero.

The published stem quarters the image; the small one, 3×3 of stride 1, keeps its size.

Axes: N batch, C channels, H height, W width, L tokens: the H·W of a map, after the class token if
there is one. S tokens are keys and values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_rates, choose_stem
from .layers.attention import attend, join_heads, split_heads
from .layers.drop_path import DropPath
from .layers.maps import ConvEmbed, to_map, to_tokens
from .layers.patches import check_whole
from .registry import Published, register
from .stages import Stage, State

HEADS = (1, 3, 6)


@dataclass(frozen=True)
class Rates:
    """Drop rates of a block."""

    dropout: float
    attention: float
    path: float


class QuickGELU(nn.Module):
    """x·σ(1.702 x) (Hendrycks and Gimpel, 2016, section 2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the activation."""
        return x * torch.sigmoid(1.702 * x)


def _filter(channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))


class Attention(nn.Module):
    """Attention to the map's own tokens, every second of them in each direction."""

    def __init__(self, channels: int, heads: int, rates: Rates) -> None:
        super().__init__()
        self.heads = heads
        self.scale = channels**-0.5
        self.conv_proj_q = _filter(channels, 1)
        self.conv_proj_k = _filter(channels, 2)
        self.conv_proj_v = _filter(channels, 2)
        self.proj_q = nn.Linear(channels, channels)
        self.proj_k = nn.Linear(channels, channels)
        self.proj_v = nn.Linear(channels, channels)
        self.rate = rates.attention
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(rates.dropout)

    def forward(self, x_NLC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Tokens of a map of `size` (H, W), after the class token if any, to as many."""
        map_NCHW = to_map(x_NLC[:, -size[0] * size[1] :], size)
        token_NLC = x_NLC[:, : -size[0] * size[1]]  # the class token, or none

        def project(conv: nn.Module, linear: nn.Module) -> torch.Tensor:
            y_NSC = torch.cat([token_NLC, to_tokens(conv(map_NCHW))], 1)
            return split_heads(linear(y_NSC), self.heads)

        y_NHLE = attend(
            project(self.conv_proj_q, self.proj_q),
            project(self.conv_proj_k, self.proj_k),
            project(self.conv_proj_v, self.proj_v),
            dropout=self.rate if self.training else 0.0,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(join_heads(y_NHLE)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them. [N, L, C] in and out."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = QuickGELU()
        self.fc2 = nn.Linear(4 * channels, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_NLC: torch.Tensor) -> torch.Tensor:
        """Returns the tokens."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x_NLC)))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the MLP, each after a norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, rates: Rates) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, rates)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, rates.dropout)
        self.drop_path = DropPath(rates.path)

    def forward(self, x_NLC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Tokens of a map of `size` (H, W), after the class token if any, to as many."""
        x_NLC = x_NLC + self.drop_path(self.attn(self.norm1(x_NLC), size))
        return x_NLC + self.drop_path(self.mlp(self.norm2(x_NLC)))  # type: ignore[no-any-return]


class Group(nn.Module):
    """Blocks on maps of one size: `patch_embed`, perhaps `cls_token`, and `blocks`."""

    undecayed = ("cls_token",)

    def __init__(self, embed: ConvEmbed, blocks: Sequence[Block], token: int, rate: float) -> None:
        """`token`: channels of the class token; 0 for none."""
        super().__init__()
        self.patch_embed = embed
        if token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, token))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.has_token = bool(token)
        self.pos_drop = nn.Dropout(rate)
        self.blocks = nn.ModuleList(blocks)

    def begin(self, x_NCHW: torch.Tensor) -> State:
        """The last group's map, or the image, to this group's tokens: what `run` takes."""
        x_NCHW = self.patch_embed(x_NCHW)
        if not self.has_token:
            return self.pos_drop(x_NCHW)  # type: ignore[no-any-return]
        token_NC = self.cls_token[:, 0].expand(len(x_NCHW), -1)
        return self.pos_drop(token_NC), self.pos_drop(x_NCHW)

    def run(self, number: int, state: State) -> State:
        """A block: the map, or (class token, map), to the same; the last gives up the map.

        Tokens are [N, C], maps [N, C, H, W].
        """
        token_NC, x_NCHW = (None, state) if isinstance(state, torch.Tensor) else state
        size, x_NLC = x_NCHW.shape[2:], to_tokens(x_NCHW)
        if token_NC is None:
            return to_map(self.blocks[number](x_NLC, size), size)
        y_NLC = self.blocks[number](torch.cat([token_NC[:, None], x_NLC], 1), size)
        if number == len(self.blocks) - 1:
            return y_NLC[:, 0]  # type: ignore[no-any-return]
        return y_NLC[:, 0], to_map(y_NLC[:, 1:], size)

    def stages(self, name: str) -> list[Stage]:
        """`begin`, then a stage a block."""
        loose = (self.cls_token,) if self.has_token else ()
        begin = Stage("stem", self.begin, (self.patch_embed,), loose)
        blocks = enumerate(self.blocks)
        return [begin, *(Stage(f"{name}.{n}", partial(self.run, n), (b,)) for n, b in blocks)]


def _joined(first: Stage, second: Stage) -> Stage:
    modules, loose = first.modules + second.modules, first.loose + second.loose
    return Stage(second.name, lambda state: second.fn(first.fn(state)), modules, loose)


@dataclass(frozen=True)
class Variant:
    """A column of the paper's Table 2."""

    depths: tuple[int, int, int]
    """Blocks of each group."""
    head_dim: int = 64
    """Channels of an attention head; the groups have 1, 3 and 6 heads."""


class CvT(ZooModel):
    """The network: `stage0`, `stage1`, `stage2`, `norm`, and the linear layer `head`.

    Args:
        variant: its size.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        stem: `imagenet` (7×7 of stride 4), `small` (3×3 of stride 1), or `auto`, which takes
            `small` up to 64 pixels.
        pool: what the classifier gets: the class `token`, or the `mean` of all tokens, without
            class token.
        head_dim: channels of an attention head; instead of the variant's.
        depths: blocks of the three groups; instead of the variant's.
        dropout: rate after each group's embedding, after attention and after each linear layer of
            the MLPs.
        attention_dropout: rate of dropping a token from another's attention.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the last
            group's first.

    Raises:
        ValueError: for an option out of its bounds.
    """

    head_name = "head"
    stem_name = "stage0.patch_embed.proj"

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        stem: str = "auto",
        pool: str = "token",
        head_dim: int | None = None,
        depths: Sequence[int] | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        head_dim = variant.head_dim if head_dim is None else head_dim
        depths = variant.depths if depths is None else tuple(depths)
        _check(pool, head_dim, depths)
        check_rates(dropout=dropout, attention_dropout=attention_dropout, drop_path=drop_path)
        shape = (7, 4, 2) if choose_stem(stem, self.image_size) == "imagenet" else (3, 1, 1)
        channels = [in_channels, *(head_dim * heads for heads in HEADS)]
        for group, depth in enumerate(depths):
            first, last, width = group == 0, group == len(HEADS) - 1, channels[group + 1]
            embed = ConvEmbed(channels[group], width, *(shape if first else (3, 2, 1)))
            paths = torch.linspace(0, drop_path if last else 0, depth, device="cpu").tolist()
            rates = [Rates(dropout, attention_dropout, path) for path in paths]
            blocks = [Block(width, HEADS[group], own) for own in rates]
            token = width if last and pool == "token" else 0
            self.add_module(f"stage{group}", Group(embed, blocks, token, dropout))
        self.norm = nn.LayerNorm(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                self.init_head(module)
                if module is not self.head:
                    nn.init.zeros_(module.bias)

    def init_head(self, layer: Head) -> None:
        """Initialises the weight as the authors do; the bias stays PyTorch's."""
        nn.init.trunc_normal_(layer.weight, std=0.02)

    @staticmethod
    def key_map(name: str) -> str | None:
        """Renames transformers' keys; the authors' are ours, and the two have none in common."""
        if name.startswith(("cvt.encoder.", "layernorm.", "classifier.")):
            for theirs, ours in _TRANSFORMERS:
                name = name.replace(theirs, ours)
        return name

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``stage0.0`` … ``stage2.n`` and ``head``.

        Maps NCHW pass between them; in the last group (class token [N, C], map), and from there to
        the head the token alone.
        """
        stages: list[Stage] = []
        for number in range(len(HEADS)):
            group = self.get_submodule(f"stage{number}")
            assert isinstance(group, Group)
            begin, first, *rest = group.stages(f"stage{number}")
            stages.extend([_joined(begin, first), *rest] if number else [begin, first, *rest])
        return [*stages, Stage("head", self._classify, (self.norm, self.head))]

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of class tokens [N, C], or of maps NCHW."""
        x_NC = self.norm(x) if x.ndim == 2 else self.norm(to_tokens(x)).mean(1)
        return self.head(x_NC)  # type: ignore[no-any-return]


# In this order: what is longer stands before what it contains.
_TRANSFORMERS = (
    ("cvt.encoder.stages.", "stage"),
    ("embedding.convolution_embeddings.projection.", "patch_embed.proj."),
    ("embedding.convolution_embeddings.normalization.", "patch_embed.norm."),
    ("layers.", "blocks."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.attention.convolution_projection_", "attn.conv_proj_"),
    ("attention.attention.projection_", "attn.proj_"),
    (".convolution_projection.convolution.", ".conv."),
    (".convolution_projection.normalization.", ".bn."),
    ("proj_query.", "proj_q."),
    ("proj_key.", "proj_k."),
    ("proj_value.", "proj_v."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm.", "norm."),
    ("classifier.", "head."),
)


def _check(pool: str, head_dim: int, depths: Sequence[int]) -> None:
    if pool not in ("token", "mean"):
        raise ValueError(f"pool must be token or mean, but got {pool!r}")
    check_whole(head_dim=head_dim)
    if len(depths) != len(HEADS):
        raise ValueError(f"depths must be {len(HEADS)} numbers of blocks, but got {depths!r}")
    for group, depth in enumerate(depths, 1):
        check_whole(**{f"depths of group {group}": depth})


VARIANTS = {"cvt_13": Variant((1, 2, 10)), "cvt_21": Variant((1, 4, 16))}
# Parameters of the reference, and as the paper's Table 3 has them.
PARAMETERS = {"cvt_13": (19_997_480, "20M"), "cvt_21": (31_622_696, "32M")}
for _name, _variant in VARIANTS.items():
    _count, _figure = PARAMETERS[_name]
    _published = Published(
        "Wu et al., 2021", _count, "transformers:CvtForImageClassification", _figure
    )
    register(_name, partial(CvT, _variant), _published)
