"""Attention within windows of a map, which may be shifted.

Liu et al., "Swin Transformer", 2021, section 3.2, with torchvision's names, shapes and padding.
`sparse_attention` has the windows of sequences.

Axes: N batch, H height, W width, C channels, P windows of a map, A attention heads, T tokens of a
window, D channels of a head; X = P × A.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class WindowAttention(nn.Module):
    """Self-attention among the patches of each window. NHWC in, NHWC out.

    A map that windows do not divide is padded with zeros, which take part as in torchvision.

    Args:
        channels: C.
        heads: A, which divides C.
        window: side of a window.
        shift: by how much the windows lie below and right of the regular ones; a map that is no
            larger than a window is not shifted.
        dropout: rate after the last linear layer.
        attention_dropout: rate of dropping a patch from another's attention.
    """

    relative_position_index: torch.Tensor

    undecayed = ("relative_position_bias_table",)

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        shift: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        offsets = (2 * window - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, self.heads))
        self.register_buffer("relative_position_index", offset_index(window))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        """Returns, for each patch, a mixture of the values of its window."""
        _, height, width, _ = x_NHWC.shape
        side = self.window
        x_NHWC = F.pad(x_NHWC, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x_NHWC.shape[1] // side, x_NHWC.shape[2] // side
        down, right = self.shift * (rows > 1), self.shift * (columns > 1)
        if down or right:
            x_NHWC = x_NHWC.roll((-down, -right), (1, 2))
        x_NHWC = self.dropout(self.proj(self._attend(self.qkv(x_NHWC), (down, right))))
        if down or right:
            x_NHWC = x_NHWC.roll((down, right), (1, 2))
        return x_NHWC[:, :height, :width]

    def _attend(self, qkv_NHWC: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        side, heads = self.window, self.heads
        batch, height, width, _ = qkv_NHWC.shape
        rows, columns = height // side, width // side
        # Windows and heads share an axis: only the batch's is then left to broadcast the bias over.
        parts = qkv_NHWC.reshape(batch, rows, side, columns, side, 3, heads, -1)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)
        parts = parts.reshape(3, batch, rows * columns * heads, side * side, -1)
        q_NXTD, k_NXTD, v_NXTD = parts.unbind(0)
        bias_PATT = self._bias(rows * columns)
        if any(shift):
            mask_PTT = shift_mask((height, width), side, shift, bias_PATT)
            bias_PATT = bias_PATT + mask_PTT[:, None]
        rate = self.attention_dropout if self.training else 0.0
        bias_XTT = bias_PATT.flatten(0, 1).to(q_NXTD.dtype)
        y_NXTD = F.scaled_dot_product_attention(q_NXTD, k_NXTD, v_NXTD, bias_XTT, rate)
        y = y_NXTD.reshape(batch, rows, columns, heads, side, side, -1)
        return y.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, -1)

    def _bias(self, windows: int) -> torch.Tensor:
        tokens = self.window**2
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias_TTA = bias.view(tokens, tokens, self.heads)
        return bias_TTA.permute(2, 0, 1).expand(windows, -1, -1, -1)


def offset_index(window: int) -> torch.Tensor:
    """Which row of the table is for each pair of a window's patches: int64[T · T].

    Patches and offsets are counted row by row, the offset (1 − window, 1 − window) first.
    """
    side = torch.arange(window)
    y_T, x_T = side.repeat_interleave(window), side.repeat(window)
    down_TT = y_T[:, None] - y_T + window - 1
    right_TT = x_T[:, None] - x_T + window - 1
    return (down_TT * (2 * window - 1) + right_TT).flatten()


def shift_mask(
    size: tuple[int, int], window: int, shift: tuple[int, int], like: torch.Tensor
) -> torch.Tensor:
    """0 between a window's patches that are neighbours in the image, else −100: [P, T, T].

    After the cyclic shift the last row and column of windows hold patches from opposite ends of
    the image (Figure 4 of the paper).

    Args:
        size: (height, width) of the padded map, in patches.
        window: side of a window.
        shift: (down, right) in patches.
        like: gives device and dtype.
    """
    (height, width), (down, right) = size, shift
    below_H = torch.arange(height, device=like.device) >= height - down
    beside_W = torch.arange(width, device=like.device) >= width - right
    end_HW = 2 * below_H.long()[:, None] + beside_W.long()
    windows = end_HW.view(height // window, window, width // window, window).transpose(1, 2)
    end_PT = windows.reshape(-1, window * window)
    apart_PTT = end_PT[:, :, None] != end_PT[:, None, :]
    return -100.0 * apart_PTT.to(like.dtype)
