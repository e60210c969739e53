"""Random draws on the CPU, so that a GPU sees the same ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Generator, Tensor


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """float32[count] in [low, high)."""
    return torch.rand(count, generator=generator) * (high - low) + low


def coin(count: int, p: float, generator: Generator) -> Tensor:
    """bool[count], each true with probability `p`."""
    return torch.rand(count, generator=generator) < p


def beta(count: int, alpha: float, generator: Generator) -> Tensor:
    """float32[count] from Beta(alpha, alpha). PyTorch's own takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    drawn = np.random.default_rng(seed).beta(alpha, alpha, count)
    return torch.from_numpy(drawn).float()


def rectangles(edges: Iterable[Tensor], height: int, width: int) -> Tensor:
    """bool[B, 1, height, width]: inside ``[top, bottom) × [left, right)``.

    Args:
        edges: top, left, bottom and right, each int64[B].
    """
    top, left, bottom, right = edges
    rows = torch.arange(height, device=top.device)
    columns = torch.arange(width, device=top.device)
    inside_y = (rows >= top[:, None]) & (rows < bottom[:, None])
    inside_x = (columns >= left[:, None]) & (columns < right[:, None])
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
