"""Where a token stands in its sequence: sinusoidal, learned, rotary and relative positions.

Sinusoidal and learned positions are added to the tokens, rotary ones turn queries and keys, and
relative ones (T5's buckets) are a bias of the attention scores. All but the learned ones know
positions of any size. None has a buffer: tables are computed in place, which is cheap beside
attention, so a model built on the meta device needs no second step.

Axes: N batch, T positions (queries), S positions of keys, D features of the model, H heads,
E features of a head, P pairs of features (E / 2).
"""

from __future__ import annotations

import math

import torch
from torch import nn


def sinusoids(positions_T: torch.Tensor, dim: int, base: float = 10_000.0) -> torch.Tensor:
    """The table [T, D] of Vaswani et al., 2017, section 3.5, in float32.

    Feature 2i is sin(t / base^(2i/D)), feature 2i + 1 the cosine of the same angle.
    """
    angles_TP = _angles(positions_T, dim, base)
    table_TP2 = torch.stack([angles_TP.sin(), angles_TP.cos()], -1)
    return table_TP2.flatten(1)[:, :dim]


def _angles(positions_T: torch.Tensor, dim: int, base: float) -> torch.Tensor:
    pair_P = torch.arange(0, dim, 2, device=positions_T.device, dtype=torch.float32)
    return positions_T[:, None] * torch.exp(pair_P * (-math.log(base) / dim))


class SinusoidalPositions(nn.Module):
    """Adds the table of `sinusoids` to the tokens; without parameters, for any length."""

    def __init__(self, *, base: float = 10_000.0) -> None:
        super().__init__()
        self.base = base

    def forward(self, x_NTD: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Returns `x_NTD` with the positions `start`, `start` + 1, … added."""
        _, length, dim = x_NTD.shape
        positions_T = torch.arange(start, start + length, device=x_NTD.device)
        return x_NTD + sinusoids(positions_T, dim, self.base).to(x_NTD.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position (Gehring et al., 2017; BERT's and GPT-2's).

    Args:
        dim: features of the model.
        length: positions that there are vectors for.

    The only parameter, `weight` [length, D], starts as a normal of deviation 0.02.
    """

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x_NTD: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Returns `x_NTD` with the vectors of positions `start`, `start` + 1, … added.

        Raises:
            ValueError: if the tokens go beyond the last position.
        """
        end, length = start + x_NTD.shape[1], self.weight.shape[0]
        if end > length:
            raise ValueError(
                f"there are learned positions for {length} tokens, but a sequence reaches {end}; "
                "cut it, or build the model for longer ones"
            )
        return x_NTD + self.weight[start:end]


class RotaryPositions(nn.Module):
    """Turns pairs of features by angles that grow with the position (Su et al., 2021).

    Pair i at position t turns by t · base^(−2i/E), equations 15 and 34 of the paper. The product
    of a turned query and a turned key then depends on the distance between them alone.

    Args:
        base: the slowest pair turns about 2π in 2π · `base` positions.
        pairs: `adjacent` turns features 2i and 2i + 1 together, as the paper does; `halves` turns
            i and i + E/2, as the weights of LLaMA and GPT-NeoX expect.

    Raises:
        ValueError: for another word.
    """

    def __init__(self, base: float = 10_000.0, *, pairs: str = "adjacent") -> None:
        super().__init__()
        if pairs not in ("adjacent", "halves"):
            raise ValueError(f"pairs must be adjacent or halves, but got {pairs!r}")
        self.base, self.pairs = base, pairs

    def forward(self, x_NHTE: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Returns queries or keys turned; they stand at `start`, `start` + 1, ….

        Raises:
            ValueError: if E is odd.
        """
        features = x_NHTE.shape[-1]
        if features % 2:
            raise ValueError(
                f"rotary positions turn pairs, so a head's features must be even, but got "
                f"{features}; change dim or heads"
            )
        positions_T = torch.arange(start, start + x_NHTE.shape[-2], device=x_NHTE.device)
        angles_TP = _angles(positions_T, features, self.base)
        cos_TP, sin_TP = angles_TP.cos().to(x_NHTE.dtype), angles_TP.sin().to(x_NHTE.dtype)
        # The pair's two features lie along the last axis, or along the one before.
        axis, shape = (-1, (-1, 2)) if self.pairs == "adjacent" else (-2, (2, -1))
        a_NHTP, b_NHTP = torch.unflatten(x_NHTE, -1, shape).unbind(axis)
        turned = (a_NHTP * cos_TP - b_NHTP * sin_TP, a_NHTP * sin_TP + b_NHTP * cos_TP)
        return torch.stack(turned, axis).flatten(-2)


class RelativeBias(nn.Module):
    """A learned bias of the scores for each head and distance, far distances sharing buckets.

    Raffel et al. (T5), 2020, section 2.1. Half of the buckets are a distance each; the other half
    grow logarithmically up to `max_distance`, and the last holds all beyond. T5 does not divide
    scores by √E, `attend` does. Layers may share one such module, as T5's do.

    Args:
        heads: of the attention.
        buckets: how many in all; where both directions are seen, half are for keys after the
            query.
        max_distance: where the last bucket begins, about.
        causal: keys after the query are never seen, so all buckets are for those before.

    The only parameter is `weight` [buckets, H]; it starts as a normal of deviation 0.02.

    Raises:
        ValueError: if there are too few buckets, or a distance below them.
    """

    undecayed = ("weight",)

    def __init__(
        self, heads: int, *, buckets: int = 32, max_distance: int = 128, causal: bool = False
    ) -> None:
        super().__init__()
        sided = buckets if causal else buckets // 2
        if sided < 2 or max_distance <= sided // 2:
            raise ValueError(
                "a side needs 2 buckets, and max_distance must be above half of a side's buckets, "
                f"but got (buckets={buckets}, max_distance={max_distance}, causal={causal})"
            )
        self.buckets, self.max_distance, self.causal = buckets, max_distance, causal
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, queries: int, keys: int | None = None) -> torch.Tensor:
        """The bias [H, T, S]; the queries are the last of the keys' positions.

        Args:
            queries: how many, T.
            keys: how many, S; by default as many.
        """
        keys = queries if keys is None else keys
        query_T = torch.arange(keys - queries, keys, device=self.weight.device)
        ahead_TS = torch.arange(keys, device=self.weight.device) - query_T[:, None]
        return self.weight[self.bucket(ahead_TS)].permute(2, 0, 1)

    def bucket(self, ahead: torch.Tensor) -> torch.Tensor:
        """Which bucket a key's distance ahead of the query (negative: behind) falls in."""
        sided, first = self.buckets, torch.zeros_like(ahead)
        if self.causal:
            distance = (-ahead).clamp(min=0)
        else:
            sided //= 2
            first, distance = (ahead > 0).long() * sided, ahead.abs()
        exact = sided // 2
        # Logarithmic from `exact` to `max_distance`; the clamp keeps log(0) out.
        grown = torch.log(distance.clamp(min=1).float() / exact) / math.log(
            self.max_distance / exact
        )
        far = (exact + (grown * (sided - exact)).long()).clamp(max=sided - 1)
        return first + torch.where(distance < exact, distance, far)
