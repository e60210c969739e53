"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training (Huang et al., 2016).

    A kept sample is divided by the keep rate, so that the expectation is unchanged. Evaluation
    returns the input itself.

    Args:
        rate: the probability of dropping a sample's branch, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x`, of any shape with samples first, scaled or zeroed sample by sample."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        """Shows the rate in the module's text."""
        return f"rate={self.rate:g}"
