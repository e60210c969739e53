"""The block of transformers for text, and what tells its tokens their positions.

Vaswani et al., "Attention Is All You Need", 2017, figure 1; with the norm in front of each branch,
Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020.

Axes: N batch, T tokens, S tokens of the source text, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..base import at_least, check_rates
from ..names import choose
from .attention import MultiHeadAttention
from .positions import LearnedPositions, SinusoidalPositions
from .text_attention import AttentionStyle, self_attend

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Block(nn.Module):
    """Attention of the text to itself, perhaps to a source, and two linear layers. NTD in and out.

    Args:
        dim: features, D.
        heads: of the attention.
        hidden: features between the two linear layers.
        dropout: rate on attention weights and on each branch, and between the linear layers.
        norm_first: norms in front of the branches, not behind the sums.
        activation: one of `ACTIVATIONS`.
        cross: attend to a source too.
        eps: of the norms.
        attention: what the self-attention is like; by default full.
        inner_dropout: drop between the linear layers too, as Vaswani's; BERT and GPT-2 don't.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        norm_first: bool,
        activation: str,
        cross: bool = False,
        eps: float = 1e-5,
        attention: AttentionStyle | None = None,
        inner_dropout: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.activation = choose("activation", activation, ACTIVATIONS)
        style = attention or AttentionStyle()
        self.self_attn = style.build(dim, heads, dropout)
        self.relative = style.build_bias(heads)
        self.norm1 = nn.LayerNorm(dim, eps)
        if cross:
            self.cross_attn = MultiHeadAttention(dim, heads, dropout=dropout)
            self.cross_norm = nn.LayerNorm(dim, eps)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)
        self.inner_dropout = nn.Dropout(dropout if inner_dropout else 0.0)

    def forward(
        self,
        x_NTD: torch.Tensor,
        source_NSD: torch.Tensor | None = None,
        *,
        causal: bool = False,
        mask_NTS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns [N, T, D].

        Args:
            x_NTD: the text's features.
            source_NSD: the source's, where the block attends to one.
            causal: no token sees a later one.
            mask_NTS: which keys are seen: the source's where there is one, else the text's own;
                as `self_attend` takes it.
        """
        own = None if source_NSD is not None else mask_NTS
        attend = partial(
            self_attend, self.self_attn, causal=causal, mask_NTS=own, bias=self.relative
        )
        x_NTD = self._residual(x_NTD, self.norm1, attend)
        if source_NSD is not None:
            across = partial(self.cross_attn, context_NSD=source_NSD, mask_NTS=mask_NTS)
            x_NTD = self._residual(x_NTD, self.cross_norm, across)
        return self._residual(x_NTD, self.norm2, self._feed)

    def _residual(
        self, x_NTD: torch.Tensor, norm: nn.Module, branch: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        if self.norm_first:
            return x_NTD + self.dropout(branch(norm(x_NTD)))  # type: ignore[no-any-return]
        return norm(x_NTD + self.dropout(branch(x_NTD)))  # type: ignore[no-any-return]

    def _feed(self, x_NTD: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.inner_dropout(self.activation(self.linear1(x_NTD))))  # type: ignore[no-any-return]


def build_positions(name: str, dim: int, length: int) -> nn.Module:
    """What adds positions to the tokens; nothing where they enter the attention instead."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "learned": lambda: LearnedPositions(dim, length),
        "sinusoidal": SinusoidalPositions,
        "rotary": nn.Identity,
        "relative": nn.Identity,
    }
    return choose("positions", name, makers)()


def cut_positions(state: dict[str, torch.Tensor], length: int) -> list[str]:
    """Leaves out, in place, a file's learned positions behind the longest text of the data.

    Fewer than the data needs stay as they are, and are refused later.

    Returns:
        A note if there were more, for the report.
    """
    theirs = state.get("positions.weight")
    if theirs is None or theirs.ndim != 2 or theirs.shape[0] <= length:
        return []
    state["positions.weight"] = theirs[:length]
    return [f"positions are cut from {theirs.shape[0]} tokens to {length}"]


def init_matrices(model: nn.Module) -> None:
    """BERT's and GPT-2's start: matrices and embeddings from N(0, 0.02²), biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def check_sizes(dim: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
    """Refuses sizes below 1 and rates outside [0, 1).

    Raises:
        ValueError: naming the first wrong one.
    """
    for name, value in (("dim", dim), ("depth", depth), ("heads", heads), ("hidden", hidden)):
        at_least(name, value, 1, "a size of the network")
    check_rates(dropout=dropout)
