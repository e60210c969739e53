"""Scaled dot-product attention: self, cross and causal, with several heads.

Vaswani et al., "Attention Is All You Need", 2017, section 3.2, computed by torch's fused kernel.
For long sequences there are `sparse_attention` (local window, block-sparse) and
`linear_attention`; `alignment` has what recurrent encoder-decoders use (additive,
multiplicative), and `positions` where tokens stand.

Axes: N batch, T queries, S keys and values, D features of the model, H heads, E features of a
head. Where S > T, the queries are the last T of the S positions, as when a text is continued:
this is what causality and rotary positions count by.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..base import check_rates
from .positions import RotaryPositions


def attend(
    q_NHTE: torch.Tensor,
    k_NHSE: torch.Tensor,
    v_NHSE: torch.Tensor,
    *,
    causal: bool = False,
    mask_NTS: torch.Tensor | None = None,
    bias_HTS: torch.Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ / √E + bias) v over the keys that a query may see; zeros if it sees none.

    Args:
        q_NHTE: queries.
        k_NHSE: keys.
        v_NHSE: values.
        causal: hide the keys after each query's own position.
        mask_NTS: boolean, true where a query may see a key; [N, 1, S] hides padding. (The masks
            of `torch.nn.MultiheadAttention` say the opposite.) A mask of four axes, [N, H, T, S],
            may differ from head to head.
        bias_HTS: added to the scores, as relative positions are; a batch axis may come before.
        dropout: rate at which attention weights are zeroed, after the softmax.
        scale: what q kᵀ is multiplied by, instead of 1 / √E.

    Returns:
        [N, H, T, E].

    Raises:
        ValueError: for a mask that is not boolean, or causal attention with fewer keys than
            queries.
    """
    queries, keys = q_NHTE.shape[-2], k_NHSE.shape[-2]
    if causal and keys < queries:
        raise ValueError(
            "causal attention needs at least as many keys as queries, because the queries are the "
            f"last of the positions, but got (queries={queries}, keys={keys})"
        )
    if causal and mask_NTS is None and bias_HTS is None and queries == keys:
        return F.scaled_dot_product_attention(
            q_NHTE, k_NHSE, v_NHSE, is_causal=True, dropout_p=dropout, scale=scale
        )
    visible = None if mask_NTS is None else check_mask(mask_NTS)
    if visible is not None and visible.ndim == 3:
        visible = visible[:, None]
    if causal:
        past_TS = past(queries, keys, q_NHTE.device)
        visible = past_TS if visible is None else visible & past_TS
    if bias_HTS is not None:
        bias_HTS = bias_HTS.to(q_NHTE.dtype)
        visible = bias_HTS if visible is None else torch.where(visible, bias_HTS, -torch.inf)
    return F.scaled_dot_product_attention(
        q_NHTE, k_NHSE, v_NHSE, attn_mask=visible, dropout_p=dropout, scale=scale
    )


def past(queries: int, keys: int, device: torch.device | None = None) -> torch.Tensor:
    """Boolean [T, S]: true where a key is not after the query; the queries are the last ones."""
    query_T = torch.arange(keys - queries, keys, device=device)
    return query_T[:, None] >= torch.arange(keys, device=device)


def check_mask(mask: torch.Tensor) -> torch.Tensor:
    """Returns the mask.

    Raises:
        ValueError: if it is not boolean.
    """
    if mask.dtype != torch.bool:
        raise ValueError(
            f"a mask must be boolean, true where a query may look, but got {mask.dtype}; "
            "compare it (mask > 0), or pass numbers to be added to the scores as a bias"
        )
    return mask


def split_heads(x_NTD: torch.Tensor, heads: int) -> torch.Tensor:
    """[N, T, H·E] to [N, H, T, E]."""
    return torch.unflatten(x_NTD, -1, (heads, -1)).transpose(1, 2)


def join_heads(x_NHTE: torch.Tensor) -> torch.Tensor:
    """[N, H, T, E] to [N, T, H·E]."""
    return x_NHTE.transpose(1, 2).flatten(2)


class HeadProjections(nn.Module):
    """The linear layers around attention with several heads: `q_proj`, `k_proj`, `v_proj` in,
    `out_proj` out, each D to D.

    They start as Glorot and Bengio (2010) have it, with biases of zero.

    Args:
        dim: features of the model, D.
        heads: how many; it divides `dim`.
        bias: whether the layers have biases.

    Raises:
        ValueError: if `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(
                f"heads must divide dim, but got (dim={dim}, heads={heads}); "
                "change one of them: a head has dim / heads features"
            )
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(layer.weight)
            if bias:
                nn.init.zeros_(layer.bias)

    def project(
        self, x_NTD: torch.Tensor, context_NSD: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [N, H, T, E] of `x_NTD`; keys and values [N, H, S, E] of the context."""
        context_NSD = x_NTD if context_NSD is None else context_NSD
        return (
            split_heads(self.q_proj(x_NTD), self.heads),
            split_heads(self.k_proj(context_NSD), self.heads),
            split_heads(self.v_proj(context_NSD), self.heads),
        )

    def join(self, x_NHTE: torch.Tensor) -> torch.Tensor:
        """Heads [N, H, T, E] to the layer's output [N, T, D]."""
        return self.out_proj(join_heads(x_NHTE))  # type: ignore[no-any-return]


class MultiHeadAttention(HeadProjections):
    """Attention with several heads: to itself, or across to a context.

    Args:
        dim: features of the model, D.
        heads: how many; it divides `dim`.
        bias: whether the four linear layers have biases.
        dropout: rate at which attention weights are zeroed in training.
        rotary: turns queries and keys by their positions; without parameters, so layers may share
            it.

    Raises:
        ValueError: if `heads` does not divide `dim`, or for a rate outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        rotary: RotaryPositions | None = None,
    ) -> None:
        super().__init__(dim, heads, bias=bias)
        check_rates(dropout=dropout)
        self.dropout = dropout
        self.rotary = rotary

    def forward(
        self,
        x_NTD: torch.Tensor,
        context_NSD: torch.Tensor | None = None,
        *,
        causal: bool = False,
        mask_NTS: torch.Tensor | None = None,
        bias_HTS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns [N, T, D].

        Args:
            x_NTD: gives the queries.
            context_NSD: gives keys and values; by default `x_NTD`, which is self-attention.
            causal, mask_NTS, bias_HTS: what a query may see, and a bias for the scores; as in
                `attend`.
        """
        q_NHTE, k_NHSE, v_NHSE = self.project(x_NTD, context_NSD)
        if self.rotary is not None:
            start = k_NHSE.shape[2] - q_NHTE.shape[2]
            q_NHTE, k_NHSE = self.rotary(q_NHTE, start), self.rotary(k_NHSE)
        y_NHTE = attend(
            q_NHTE,
            k_NHSE,
            v_NHSE,
            causal=causal,
            mask_NTS=mask_NTS,
            bias_HTS=bias_HTS,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.join(y_NHTE)

    def extra_repr(self) -> str:
        """Shows what the layers below don't."""
        return f"heads={self.heads}, dropout={self.dropout:g}"
