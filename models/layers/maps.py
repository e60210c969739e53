"""Maps of tokens: what pyramids of transformers and convolutions have in common.

Tokens lie in memory as a channels-last map does, so that neither turns into the other by a copy.

Axes: N batch, C channels, H height, W width, L = H·W tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def to_tokens(x_NCHW: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, L, C]; a view where the map is channels-last."""
    return x_NCHW.flatten(2).transpose(1, 2)


def to_map(x_NLC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """[N, L, C] to [N, C, H, W], a channels-last view; `size` is (H, W)."""
    return torch.unflatten(x_NLC.transpose(1, 2), 2, tuple(size))


class MapNorm(nn.LayerNorm):
    """Layer norm of each token of a map, over its channels. NCHW in, NCHW out."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the map normalised, channels-last."""
        return to_map(super().forward(to_tokens(x_NCHW)), x_NCHW.shape[2:])


class ConvEmbed(nn.Module):
    """A convolution whose windows overlap, `proj`, and a norm, `norm`. NCHW in, NCHW out."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels, kernel, stride, padding)
        self.norm = MapNorm(channels)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the map of tokens."""
        return self.norm(self.proj(x_NCHW))  # type: ignore[no-any-return]
