"""Alignment of a decoder's states with an encoder's: additive and multiplicative attention.

Both score every source position for every query, and average the sources by the softmax of the
scores; the weights come back too, because they are the alignment that one looks at. Where one
learned query is all there is, attention is a pool over the sources.

Axes: N batch, T queries (decoder's steps), S source positions, Q features of a query, D features
of a source, A features that scores are computed in.
"""

from __future__ import annotations

import torch
from torch import nn

from .attention import check_mask


def average(
    scores_NTS: torch.Tensor, source_NSD: torch.Tensor, mask_NTS: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sources averaged by the softmax of scores, [N, T, D], and the weights [N, T, S].

    Args:
        scores_NTS: any numbers.
        source_NSD: what is averaged.
        mask_NTS: boolean, true where a query may see a source; [N, 1, S] hides padding. A query
            that sees none gets zeros.

    Raises:
        ValueError: for a mask that is not boolean.
    """
    if mask_NTS is None:
        weights_NTS = scores_NTS.softmax(-1)
    else:
        # A finite lowest number, then zeros: a row without any source has no NaN.
        hidden_NTS = ~check_mask(mask_NTS)
        lowest = torch.finfo(scores_NTS.dtype).min
        weights_NTS = scores_NTS.masked_fill(hidden_NTS, lowest).softmax(-1)
        weights_NTS = weights_NTS.masked_fill(hidden_NTS, 0)
    return weights_NTS @ source_NSD, weights_NTS


class AdditiveAttention(nn.Module):
    """Scores vᵀ tanh(W q + U h) (Bahdanau et al., 2015, appendix A.1.2).

    Args:
        query: features of a query, Q.
        source: features of a source, D.
        hidden: features of the hidden layer, A.

    Layers: `query_proj` (W), `source_proj` (U), `score` (v), without biases.
    """

    def __init__(self, query: int, source: int, hidden: int) -> None:
        super().__init__()
        self.query_proj = nn.Linear(query, hidden, bias=False)
        self.source_proj = nn.Linear(source, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(
        self,
        query_NTQ: torch.Tensor,
        source_NSD: torch.Tensor,
        *,
        mask_NTS: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the averaged sources [N, T, D] and the weights [N, T, S]; see `average`."""
        query_NT1A = self.query_proj(query_NTQ)[:, :, None]
        source_N1SA = self.source_proj(source_NSD)[:, None]
        scores_NTS = self.score(torch.tanh(query_NT1A + source_N1SA)).squeeze(-1)
        return average(scores_NTS, source_NSD, mask_NTS)


class MultiplicativeAttention(nn.Module):
    """Scores qᵀ W h, or qᵀ h without the matrix (Luong et al., 2015, section 3.1).

    The paper's third score, `concat`, is the additive one. The tanh layer that it puts on query
    and average (equation 5) belongs to the decoder.

    Args:
        query: features of a query, Q.
        source: features of a source, D.
        score: `general` has the matrix, the layer `source_proj` [Q, D] without bias; `dot` does
            not, and needs Q = D.

    Raises:
        ValueError: for another score, or `dot` between features of different number.
    """

    def __init__(self, query: int, source: int, *, score: str = "general") -> None:
        super().__init__()
        if score not in ("general", "dot"):
            raise ValueError(
                f"score must be general or dot, but got {score!r}; concat is AdditiveAttention"
            )
        if score == "dot" and query != source:
            raise ValueError(
                "the dot score needs as many features in queries as in sources, but got "
                f"(query={query}, source={source}); take score='general'"
            )
        self.source_proj: nn.Module = (
            nn.Linear(source, query, bias=False) if score == "general" else nn.Identity()
        )

    def forward(
        self,
        query_NTQ: torch.Tensor,
        source_NSD: torch.Tensor,
        *,
        mask_NTS: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the averaged sources [N, T, D] and the weights [N, T, S]; see `average`."""
        scores_NTS = query_NTQ @ self.source_proj(source_NSD).transpose(1, 2)
        return average(scores_NTS, source_NSD, mask_NTS)


class AttentionPool(nn.Module):
    """The average of all sources by a learned weight (Yang et al., 2016, equations 5 to 7).

    Layers: `proj` (W, b) and `context` (the word vector u).

    Args:
        dim: features of a source, D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.context = nn.Linear(dim, 1, bias=False)

    def forward(self, source_NSD: torch.Tensor, real_NS: torch.Tensor) -> torch.Tensor:
        """Returns [N, D]; what is not real, such as padding, has no weight."""
        scores_N1S = self.context(torch.tanh(self.proj(source_NSD))).transpose(1, 2)
        return average(scores_N1S, source_NSD, real_NS[:, None])[0][:, 0]
