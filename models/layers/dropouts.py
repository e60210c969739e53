"""Dropout in its kinds.

A kept value is divided by the keep rate, so that expectations are the same in training and out
of it, where these layers return their input. Standard and spatial dropout are torch's `Dropout`
and `Dropout2d` (Srivastava et al., 2014; Tompson et al., 2015); stochastic depth is in
`drop_path.py`. Each class names its paper.

Axes: N batch, T time, C channels or features, H height, W width, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ..base import check_rates
from ..names import choose
from .drop_path import DropPath
from .penalties import PriorPenalty


class Dropping(nn.Module):
    """What the layers here share: a rate in [0, 1), and the training mode alone drops.

    Raises:
        ValueError: for another rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_rates(dropout=rate)
        self.rate = rate

    @property
    def _off(self) -> bool:
        return not self.training or self.rate == 0

    def extra_repr(self) -> str:
        """Shows the rate in the module's text."""
        return f"rate={self.rate:g}"


class DropBlock(Dropping):
    """Drops square blocks of each channel (Ghiasi et al., "DropBlock", 2018, algorithm 1).

    NCHW in, NCHW out. Blocks lie wholly inside the image. They are drawn so that `rate` of the
    pixels would be dropped if none overlapped, and what is kept is divided by its share.

    Args:
        rate: the share to drop.
        block: side of a block in pixels; where the image is smaller, the image's side.
    """

    def __init__(self, rate: float, block: int = 7) -> None:
        super().__init__(rate)
        if block < 1:
            raise ValueError(f"block must be a whole number >= 1, but got {block}; 7 is common")
        self.block = block

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the input with blocks dropped."""
        if self._off:
            return x_NCHW
        n, c, h, w = x_NCHW.shape
        block = min(self.block, h, w)
        rows, columns = h - block + 1, w - block + 1
        gamma = self.rate * h * w / (block**2 * rows * columns)
        corners = x_NCHW.new_empty(n, c, rows, columns).bernoulli_(min(gamma, 1.0))
        # A corner at (i, j) covers rows i … i + block - 1 and columns j … j + block - 1.
        padded = F.pad(corners, (block - 1,) * 4)
        keep_NCHW = 1 - F.max_pool2d(padded, block, stride=1)
        # In single precision at least: a sum of ones ends at 256 in bfloat16.
        kept = keep_NCHW.mean(dtype=torch.promote_types(x_NCHW.dtype, torch.float32))
        share = kept.clamp(min=1 / keep_NCHW.numel()).to(x_NCHW.dtype)
        return x_NCHW * keep_NCHW / share

    def extra_repr(self) -> str:
        """Shows rate and block in the module's text."""
        return f"{super().extra_repr()}, block={self.block}"


class DropConnect(Dropping):
    """Drops the weights of a linear layer.

    Wan et al., "Regularization of Neural Networks using DropConnect", 2013.

    Called with the layer, whose parameters stay its own. In training each sample has its own
    mask, as in the paper, which takes N · O · I numbers; `shared` draws one for the batch. The
    bias is kept, and evaluation uses the expected weights: the paper's sampled inference is
    `monte_carlo`.
    """

    def __init__(self, rate: float, shared: bool = False) -> None:
        super().__init__(rate)
        self.shared = shared

    def forward(self, x_NI: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
        """Returns [N, O]: the layer's output with weights dropped."""
        if self._off:
            return linear(x_NI)  # type: ignore[no-any-return]
        if self.shared:
            weight_OI = F.dropout(linear.weight, self.rate)
            return F.linear(x_NI, weight_OI, linear.bias)
        weight_NOI = F.dropout(linear.weight.expand(len(x_NI), -1, -1), self.rate)
        y_NO = (weight_NOI @ x_NI[..., None]).squeeze(-1)
        return y_NO if linear.bias is None else y_NO + linear.bias


def time_mask(x_NTC: torch.Tensor, rate: float, dim: int = 1) -> torch.Tensor:
    """A scaled dropout mask that is constant over one axis: of `x`'s shape, but 1 there."""
    shape = [1 if axis == dim % x_NTC.ndim else size for axis, size in enumerate(x_NTC.shape)]
    return x_NTC.new_empty(shape).bernoulli_(1 - rate).div_(1 - rate)


class VariationalDropout(Dropping):
    """Drops the same features at all times (Gal and Ghahramani, 2016, section 4).

    NTC in, NTC out; with `dim` 0, TNC. Between the steps of a recurrent cell the same is done
    by drawing `time_mask` once and multiplying each state by it.
    """

    def __init__(self, rate: float, dim: int = 1) -> None:
        super().__init__(rate)
        self.dim = dim

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        """Returns the input with features dropped."""
        return x_NTC if self._off else x_NTC * time_mask(x_NTC, self.rate, self.dim)


class Zoneout(Dropping):
    """Keeps units of a recurrent state as they were (Krueger et al., "Zoneout", 2017).

    Called with the new and the old state, both of any one shape. In training each unit stays
    with probability `rate`; evaluation returns the expectation of that. An LSTM has one for its
    hidden state and another for its cell.
    """

    def forward(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """Returns the state to go on with."""
        if self.rate == 0:
            return new
        if not self.training:
            return torch.lerp(new, old, self.rate)
        stays = torch.empty_like(new).bernoulli_(self.rate).bool()
        return torch.where(stays, old, new)


class ConcreteDropout(PriorPenalty):
    """Dropout whose rate is learned (Gal et al., "Concrete Dropout", 2017).

    Any shape in, the same out; each number has a mask of its own. The mask is a relaxed Bernoulli
    variable, so that the loss has a gradient for the rate. Training lowers the loss plus the
    divergence from a prior: the loss alone prefers no dropout. Called with the linear layer that
    takes the dropped features, it keeps that term for whoever asks for its `penalty`.

    Args:
        rate: where the rate starts, in (0, 1).
        temperature: of the relaxation; 0 would be a Bernoulli variable without a gradient.
        length: the prior's length scale l: the larger, the smaller it wants the weights.
    """

    def __init__(self, rate: float = 0.1, temperature: float = 0.1, length: float = 0.01) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise ValueError(f"a learned rate must start in (0, 1), but got {rate!r}; 0.1 is usual")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, but got {temperature!r}; 0.1 is usual")
        if not length >= 0:
            raise ValueError(f"length must be a scale >= 0, but got {length!r}; 0.01 is usual")
        self.temperature, self.length = temperature, length
        # One number, but no scalar: DeepSpeed can't broadcast those.
        self.logit = nn.Parameter(torch.full((1,), math.log(rate / (1 - rate))))

    @property
    def rate(self) -> float:
        """The rate as it is now."""
        return self.logit.sigmoid().item()

    def forward(self, x: torch.Tensor, linear: nn.Linear | None = None) -> torch.Tensor:
        """Returns the input with numbers dropped, softly; with a layer, that layer's output."""
        dropped = self._drop(x) if self.training else x
        if linear is None:
            return dropped
        self.keep(self.divergence(linear.weight))
        return linear(dropped)  # type: ignore[no-any-return]

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        # In single precision at least, because in half log(1 - u) would often be infinite.
        dtype = torch.promote_types(x.dtype, torch.float32)
        u = torch.rand(x.shape, dtype=dtype, device=x.device).clamp(1e-7, 1 - 1e-7)
        noise = u.log() - torch.log1p(-u)
        # 1 - sigmoid(a) is sigmoid(-a), without the rounding.
        keep = torch.sigmoid(-(self.logit + noise) / self.temperature)
        return x * (keep / torch.sigmoid(-self.logit)).to(x.dtype)

    def divergence(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """The divergence from the prior, for the whole training set (equation 3).

        l² ‖W‖² / (2 (1 − p)) − I · H(p), where H is the entropy in nats. The paper's weights are
        multiplied by 1 − p at inference, so there the first term is l² (1 − p) ‖M‖²/2. What is
        added to the mean loss is this by the number of training samples.

        Args:
            weight_OI: of the layer that takes the dropped features, I on its second axis.

        Returns:
            A scalar with gradients for the rate and the weights.
        """
        log_p, log_keep = F.logsigmoid(self.logit), F.logsigmoid(-self.logit)
        keep = log_keep.exp()
        entropy = -(log_p.exp() * log_p + keep * log_keep)
        weights = self.length**2 * weight_OI.square().sum() / (2 * keep)
        return (weights - weight_OI.shape[1] * entropy).squeeze()


DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "standard": nn.Dropout,
    "spatial": nn.Dropout2d,
    "dropblock": DropBlock,
    "variational": VariationalDropout,
    "concrete": ConcreteDropout,
    "path": DropPath,
}
"""What `dropout` makes: layers that take one tensor."""


def dropout(name: str, rate: float) -> nn.Module:
    """A fresh dropout layer; the identity at rate 0.

    Args:
        name: one of `DROPOUTS`. `spatial` and `dropblock` take NCHW, `variational` NTC, the
            others any shape; `path` drops whole samples, so it belongs on a residual branch.
        rate: the probability of dropping, in [0, 1); where `concrete` starts.

    Raises:
        ValueError: for an unknown name or another rate.
    """
    make = choose("dropout", name, DROPOUTS)
    check_rates(dropout=rate)
    return make(rate) if rate else nn.Identity()
