"""Attention with a feature map instead of the softmax, so that keys and values are summed once.

Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention", 2020. The layer's projections, and so its state dict, are those of
`MultiHeadAttention`.

Axes: N batch, T queries, S keys and values, D features of the model, H heads, E features of a
head, F = E + 1; B blocks of C tokens each.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .attention import HeadProjections, check_mask
from .sparse_attention import into_blocks

EPSILON = 1e-6
"""Keeps the normaliser above zero where a query sees nothing."""


class LinearAttention(HeadProjections):
    """φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k) with φ(x) = elu(x) + 1, at cost T · E².

    Section 3.2 of the paper. The causal sums of section 3.3 are taken block by block: within a
    block by products of queries and keys, before it by the sums so far.

    Args:
        dim: features of the model, D.
        heads: how many; it divides `dim`.
        bias: whether the linear layers have biases.
        size: tokens in a block of the causal form; it changes the cost alone.

    Raises:
        ValueError: if `heads` does not divide `dim`, or for an empty block.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, size: int = 64) -> None:
        super().__init__(dim, heads, bias=bias)
        if size < 1:
            raise ValueError(f"size must be at least 1 token, but got {size}")
        self.size = size

    def forward(
        self,
        x_NTD: torch.Tensor,
        context_NSD: torch.Tensor | None = None,
        *,
        causal: bool = False,
        mask_NS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns [N, T, D].

        Args:
            x_NTD: gives the queries.
            context_NSD: gives keys and values; by default `x_NTD`.
            causal: sum only over keys up to each query; not across to a context.
            mask_NS: boolean, false at keys that are padding.

        Raises:
            ValueError: for causal attention to a context.
        """
        if causal and context_NSD is not None:
            raise ValueError("causal linear attention has no context: positions must be the same")
        q_NHTE, k_NHSE, v_NHSE = self.project(x_NTD, context_NSD)
        q_NHTE, k_NHSE = F.elu(q_NHTE) + 1, F.elu(k_NHSE) + 1
        if mask_NS is not None:
            k_NHSE = k_NHSE * check_mask(mask_NS)[:, None, :, None]
        # A last value of 1 sums the normaliser along with the rest.
        v_NHSF = torch.cat([v_NHSE, torch.ones_like(v_NHSE[..., :1])], -1)
        sums_NHTF = (
            _causal_sums(q_NHTE, k_NHSE, v_NHSF, self.size)
            if causal
            else q_NHTE @ (k_NHSE.transpose(2, 3) @ v_NHSF)
        )
        y_NHTE = sums_NHTF[..., :-1] / (sums_NHTF[..., -1:] + EPSILON)
        return self.join(y_NHTE)

    def extra_repr(self) -> str:
        """Shows what the layers below don't."""
        return f"heads={self.heads}, size={self.size}"


def _causal_sums(
    q_NHTE: torch.Tensor, k_NHTE: torch.Tensor, v_NHTF: torch.Tensor, size: int
) -> torch.Tensor:
    """For each t, q_t · Σ_{s ≤ t} k_s v_sᵀ."""
    length = q_NHTE.shape[2]
    blocks = -(-length // size)
    q_NHBCE, k_NHBCE, v_NHBCF = (into_blocks(x, blocks, size) for x in (q_NHTE, k_NHTE, v_NHTF))
    sum_NHBEF = k_NHBCE.transpose(3, 4) @ v_NHBCF
    before_NHBEF = F.pad(sum_NHBEF.cumsum(2)[:, :, :-1], (0, 0, 0, 0, 1, 0))
    within_NHBCC = (q_NHBCE @ k_NHBCE.transpose(3, 4)).tril()
    y_NHBCF = q_NHBCE @ before_NHBEF + within_NHBCC @ v_NHBCF
    return y_NHBCF.flatten(2, 3)[:, :, :length]
