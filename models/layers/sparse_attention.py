"""Self-attention of each token to some of the others; the cost grows with those alone.

- `LocalAttention`: each token sees a window around itself (Beltagy et al., "Longformer", 2020,
  section 3.1).
- `BlockSparseAttention`: blocks of tokens see chosen blocks (Child et al., "Generating Long
  Sequences with Sparse Transformers", 2019; Zaheer et al., "Big Bird", 2020, section 2).

The layers' projections, and so their state dicts, are those of `MultiHeadAttention`.

Axes: N batch, T tokens, D features of the model, H heads, E features of a head; B blocks of
C tokens each, K blocks that a block sees.
"""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F

from ..base import check_rates
from .attention import HeadProjections, attend, check_mask


class LocalAttention(HeadProjections):
    """Each token sees the tokens up to `window` away, itself included, at cost T · window.

    Args:
        dim: features of the model, D.
        heads: how many; it divides `dim`.
        window: how many tokens it sees on each side; only on the left if causal.
        bias: whether the linear layers have biases.
        dropout: rate at which attention weights are zeroed in training.

    Raises:
        ValueError: if `heads` does not divide `dim`, for a window below 1, or a rate outside
            [0, 1).
    """

    def __init__(
        self, dim: int, heads: int, *, window: int, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(dim, heads, bias=bias)
        check_rates(dropout=dropout)
        if window < 1:
            raise ValueError(f"window must be at least 1 token, but got {window}")
        self.window, self.dropout = window, dropout

    def forward(
        self,
        x_NTD: torch.Tensor,
        *,
        causal: bool = False,
        mask_NT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns [N, T, D].

        Args:
            x_NTD: the tokens.
            causal: hide the tokens after each.
            mask_NT: boolean, false at padding, which then is not seen.
        """
        # In blocks as long as the window, a token sees at most into the next block.
        blocks = -(-x_NTD.shape[1] // self.window)
        number_B = torch.arange(blocks, device=x_NTD.device)
        near_K = torch.arange(-1, 1 if causal else 2, device=x_NTD.device)
        index_BK = number_B[:, None] + near_K
        inside_BK = (index_BK >= 0) & (index_BK < blocks)
        y_NHTE = _attend_blocks(
            *self.project(x_NTD),
            size=self.window,
            index_BK=index_BK.clamp(0, blocks - 1),
            chosen_BK=inside_BK,
            reach=self.window,
            causal=causal,
            mask_NT=mask_NT,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.join(y_NHTE)

    def extra_repr(self) -> str:
        """Shows what the layers below don't."""
        return f"heads={self.heads}, window={self.window}, dropout={self.dropout:g}"


class BlockSparseAttention(HeadProjections):
    """Blocks of tokens see the blocks that a table chooses, at cost T · size · K.

    K is the largest number of blocks that any block sees, but for the first ones of the table if
    they see all: those are computed apart.

    Args:
        dim: features of the model, D.
        heads: how many; it divides `dim`.
        size: tokens in a block, C.
        layout_BB: boolean; row i tells which blocks block i sees. `window_layout` and
            `strided_layout` make some.
        bias: whether the linear layers have biases.
        dropout: rate at which attention weights are zeroed in training.

    Raises:
        ValueError: if `heads` does not divide `dim`, for an empty block, a table that is no
            boolean square, or a rate outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        size: int,
        layout_BB: torch.Tensor,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, bias=bias)
        check_rates(dropout=dropout)
        shape = tuple(layout_BB.shape)
        if layout_BB.dtype != torch.bool or len(shape) != 2 or shape[0] != shape[1] or size < 1:
            raise ValueError(
                "layout_BB must be a square of booleans and size at least 1, but got "
                f"(layout_BB={shape} of {layout_BB.dtype}, size={size})"
            )
        self.size, self.dropout = size, dropout
        # Lists, not buffers: a model built on the meta device keeps them.
        self.seen = [[j for j, seen in enumerate(row) if seen] for row in layout_BB.tolist()]

    def forward(
        self,
        x_NTD: torch.Tensor,
        *,
        causal: bool = False,
        mask_NT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns [N, T, D]; arguments as in `LocalAttention`. A token that sees none gets the
        bias of `out_proj`.

        Raises:
            ValueError: if the table has fewer blocks than the tokens fill.
        """
        blocks = -(-x_NTD.shape[1] // self.size)
        if blocks > len(self.seen):
            raise ValueError(
                f"the layout has {len(self.seen)} blocks of {self.size} tokens, but got "
                f"{x_NTD.shape[1]} tokens; make a layout of at least {blocks} blocks"
            )
        q_NHTE, k_NHTE, v_NHTE = self.project(x_NTD)
        dropout = self.dropout if self.training else 0.0
        everywhere = 0 if causal else self._everywhere(blocks)
        index_BK, chosen_BK = self._table(blocks, causal, everywhere, x_NTD.device)
        y_NHTE = _attend_blocks(
            q_NHTE,
            k_NHTE,
            v_NHTE,
            size=self.size,
            index_BK=index_BK,
            chosen_BK=chosen_BK,
            reach=None,
            causal=causal,
            mask_NT=mask_NT,
            dropout=dropout,
        )
        if everywhere:
            first = everywhere * self.size
            mask_N1T = None if mask_NT is None else check_mask(mask_NT)[:, None]
            seeing = attend(
                q_NHTE[:, :, :first], k_NHTE, v_NHTE, mask_NTS=mask_N1T, dropout=dropout
            )
            y_NHTE = torch.cat([seeing, y_NHTE[:, :, first:]], 2)
        return self.join(y_NHTE)

    def _everywhere(self, blocks: int) -> int:
        """How many blocks see all, of the first ones without a gap."""
        seeing = itertools.takewhile(lambda row: row[:blocks] == list(range(blocks)), self.seen)
        return min(blocks, len(list(seeing)))

    def _table(
        self, blocks: int, causal: bool, everywhere: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks that each sees, filled up to the same number, and which of them count.

        The first `everywhere` blocks, which are computed apart, see none here.
        """
        rows = [
            [j for j in row if j < blocks and not (causal and j > i)] if i >= everywhere else []
            for i, row in enumerate(self.seen[:blocks])
        ]
        most = max(1, *map(len, rows))
        index = [row + [0] * (most - len(row)) for row in rows]
        chosen = [[True] * len(row) + [False] * (most - len(row)) for row in rows]
        return torch.tensor(index, device=device), torch.tensor(chosen, device=device)

    def extra_repr(self) -> str:
        """Shows what the layers below don't."""
        return f"heads={self.heads}, size={self.size}, dropout={self.dropout:g}"


def window_layout(blocks: int, near: int = 1, everywhere: int = 0) -> torch.Tensor:
    """Boolean [B, B]: blocks up to `near` away see each other (Big Bird, section 2).

    Args:
        blocks: B.
        near: how far.
        everywhere: the first blocks that see all and that all see.
    """
    row_B = torch.arange(blocks)
    layout_BB = (row_B[:, None] - row_B).abs() <= near
    layout_BB[:everywhere] = True
    layout_BB[:, :everywhere] = True
    return layout_BB


def strided_layout(blocks: int, stride: int) -> torch.Tensor:
    """Boolean [B, B]: the last `stride` blocks, and every `stride`-th before them.

    Both heads' strided patterns of Child et al., section 4, in one; for causal attention.
    """
    row_B = torch.arange(blocks)
    behind_BB = row_B[:, None] - row_B
    return (behind_BB >= 0) & ((behind_BB < stride) | (behind_BB % stride == 0))


def _attend_blocks(
    q_NHTE: torch.Tensor,
    k_NHTE: torch.Tensor,
    v_NHTE: torch.Tensor,
    *,
    size: int,
    index_BK: torch.Tensor,
    chosen_BK: torch.Tensor,
    reach: int | None,
    causal: bool,
    mask_NT: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Attention of each block of queries to the blocks of keys that its row of `index_BK` lists.

    `chosen_BK` tells which of the listed count; `reach` is the largest distance between a query
    and a key that it sees.
    """
    batch, _, length, _ = q_NHTE.shape
    blocks = len(index_BK)
    seen_BCS = _seen(size, length, index_BK, chosen_BK, reach, causal)
    seen_NBCS = seen_BCS.expand(batch, -1, size, -1)
    if mask_NT is not None:
        real_NT = F.pad(check_mask(mask_NT), (0, blocks * size - length))
        real_NBS = real_NT.view(batch, blocks, size)[:, index_BK].flatten(2)
        seen_NBCS = seen_NBCS & real_NBS[:, :, None]
    q_NHBCE, k_NHBCE, v_NHBCE = (into_blocks(x, blocks, size) for x in (q_NHTE, k_NHTE, v_NHTE))

    def folded(x_NHBSE: torch.Tensor) -> torch.Tensor:
        return x_NHBSE.transpose(1, 2).flatten(0, 1)  # blocks stand beside each other as samples

    y_MHCE = attend(
        folded(q_NHBCE),
        folded(k_NHBCE[:, :, index_BK].flatten(3, 4)),
        folded(v_NHBCE[:, :, index_BK].flatten(3, 4)),
        mask_NTS=seen_NBCS.flatten(0, 1),
        dropout=dropout,
    )
    return torch.unflatten(y_MHCE, 0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _seen(
    size: int,
    length: int,
    index_BK: torch.Tensor,
    chosen_BK: torch.Tensor,
    reach: int | None,
    causal: bool,
) -> torch.Tensor:
    """Which tokens of its K blocks each query sees: [B, C, S], or [B, 1, S] if all see the same."""
    blocks = len(index_BK)
    position_BC = torch.arange(blocks * size, device=index_BK.device).view(blocks, size)
    key_BS = position_BC[index_BK].flatten(1)  # S: the tokens of the K blocks
    behind_BCS = position_BC[:, :, None] - key_BS[:, None, :]
    seen_BCS = (chosen_BK.repeat_interleave(size, 1) & (key_BS < length))[:, None]
    if causal:
        seen_BCS = seen_BCS & (behind_BCS >= 0)
    if reach is not None:
        seen_BCS = seen_BCS & (behind_BCS.abs() <= reach)
    return seen_BCS


def into_blocks(x_NHTE: torch.Tensor, blocks: int, size: int) -> torch.Tensor:
    """[N, H, T, E] to [N, H, B, C, E], filled up with zeros."""
    short = blocks * size - x_NHTE.shape[2]
    return torch.unflatten(F.pad(x_NHTE, (0, 0, 0, short)), 2, (blocks, size))
