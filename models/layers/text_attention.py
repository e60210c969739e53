"""How the tokens of a text attend to each other, by name.

- `full`: every token sees every other (Vaswani et al., 2017).
- `local`: it sees those up to `window` away (Beltagy et al., "Longformer", 2020).
- `sparse`: in blocks of `window` tokens, it sees its block's neighbours, and all see the first and
  are seen by it (Zaheer et al., "Big Bird", 2020, without their random blocks). Causal, a block of
  B sees the last √B, and every √B-th before them (Child et al., 2019).
- `linear`: no softmax, so that the cost is linear in the length (Katharopoulos et al., 2020).

Two kinds of positions enter here and not with the tokens: `rotary` turns queries and keys, and
`relative` adds T5's bias to the scores, from a table of each block's own (T5 has one for all). Both
are of full attention alone.

Axes: N batch, T tokens, S the same tokens as keys, D features, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..base import at_least
from .attention import HeadProjections, MultiHeadAttention
from .linear_attention import LinearAttention
from .positions import RelativeBias, RotaryPositions
from .sparse_attention import (
    BlockSparseAttention,
    LocalAttention,
    strided_layout,
    window_layout,
)

KINDS = ("full", "local", "sparse", "linear")
INNER_POSITIONS = ("rotary", "relative")


@dataclass(frozen=True)
class AttentionStyle:
    """What a block's self-attention is like.

    Attributes:
        kind: one of `KINDS`.
        window: tokens: how far one sees if `local`, how many are a block if `sparse`.
        positions: as the network has them.
        length: most tokens of a text.
        causal: no token sees a later one.

    Raises:
        ValueError: for an unknown kind, a window below 1, or positions that it can't have.
    """

    kind: str = "full"
    window: int = 32
    positions: str = "learned"
    length: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"attention must be one of {', '.join(KINDS)}, but got {self.kind!r}")
        at_least("window", self.window, 1, "tokens that attention sees")
        if self.kind != "full" and self.positions in INNER_POSITIONS:
            raise ValueError(
                f"{self.positions} positions are of full attention, but attention is {self.kind}; "
                "take learned or sinusoidal positions, or attention: full"
            )

    def build(self, dim: int, heads: int, dropout: float) -> HeadProjections:
        """The layer; `dropout` is of attention weights, which `linear` does not have."""
        if self.kind == "local":
            return LocalAttention(dim, heads, window=self.window, dropout=dropout)
        if self.kind == "sparse":
            layout_BB = self._layout()
            return BlockSparseAttention(
                dim, heads, size=self.window, layout_BB=layout_BB, dropout=dropout
            )
        if self.kind == "linear":
            return LinearAttention(dim, heads)
        rotary = RotaryPositions() if self.positions == "rotary" else None
        return MultiHeadAttention(dim, heads, dropout=dropout, rotary=rotary)

    def build_bias(self, heads: int) -> RelativeBias | None:
        """The bias of the scores by distance, where positions are `relative`."""
        return RelativeBias(heads, causal=self.causal) if self.positions == "relative" else None

    def _layout(self) -> torch.Tensor:
        blocks = -(-self.length // self.window)
        with torch.device("cpu"):  # its values matter, also of a network on the meta device
            if self.causal:
                return strided_layout(blocks, max(1, math.isqrt(blocks)))
            return window_layout(blocks, near=1, everywhere=1)


def check_reach(style: AttentionStyle, depth: int) -> None:
    """That one token, at an end of the text, can see all of it through its blocks.

    Args:
        depth: blocks.

    Raises:
        ValueError: with the window that would do.
    """
    if style.kind == "local" and depth * style.window < style.length - 1:
        raise ValueError(
            "the answer is read at one end of the text, which sees depth × window tokens, so this "
            f"must be length - 1 or more, but got {depth} × {style.window} < {style.length - 1}; "
            f"take window: {-(-(style.length - 1) // depth)}, or attention: sparse"
        )


def self_attend(
    attention: HeadProjections,
    x_NTD: torch.Tensor,
    *,
    causal: bool,
    mask_NTS: torch.Tensor | None = None,
    bias: RelativeBias | None = None,
) -> torch.Tensor:
    """Self-attention by a layer of any kind: [N, T, D] to [N, T, D].

    Args:
        attention: what `AttentionStyle.build` gave.
        x_NTD: the tokens' features.
        causal: no token sees a later one.
        mask_NTS: boolean, false at keys that are padding; full attention takes any mask, the
            other kinds [N, 1, S].
        bias: of the scores; only for full attention.
    """
    if isinstance(attention, MultiHeadAttention):
        bias_HTS = None if bias is None else bias(x_NTD.shape[1])
        if bias_HTS is not None and torch.compiler.is_exporting():
            # A mask with a gradient has another kernel, and only one of two passes has gradients.
            bias_HTS = bias_HTS.detach()
        return attention(x_NTD, causal=causal, mask_NTS=mask_NTS, bias_HTS=bias_HTS)  # type: ignore[no-any-return]
    mask_NS = None if mask_NTS is None else mask_NTS[:, 0]
    if isinstance(attention, LinearAttention):
        return attention(x_NTD, causal=causal, mask_NS=mask_NS)  # type: ignore[no-any-return]
    return attention(x_NTD, causal=causal, mask_NT=mask_NS)  # type: ignore[no-any-return]
