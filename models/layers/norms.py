"""Normalisation of activations and of convolution kernels, by name.

torch's own modules where it has them. Beside those: layer and RMS norm over the channels of an
image, filter response normalisation (Singh and Krishnan, 2020), and weight standardisation (Qiao
et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019).

Axes: N batch, C channels, H height, W width; kernels are OIHW, output and input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..names import choose


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel. NCHW in, NCHW out."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the normalised input."""
        return super().forward(x_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNorm2d(nn.RMSNorm):
    """x / RMS(x) · γ over the channels of each pixel (Zhang and Sennrich, 2019, equation 4).

    NCHW in, NCHW out.
    """

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the normalised input."""
        weight = self.weight.to(x_NCHW.dtype)  # the fused kernel takes one type alone
        y_NHWC = F.rms_norm(x_NCHW.permute(0, 2, 3, 1), self.normalized_shape, weight, self.eps)
        return y_NHWC.permute(0, 3, 1, 2)


class FilterResponseNorm(nn.Module):
    """γ · x / √(mean of x² + ε) + β over each channel's pixels (Singh and Krishnan, 2020).

    NCHW in, NCHW out. It depends neither on the batch nor on other channels, and takes no mean
    off; its authors put `activations.ThresholdedLinear` behind it.

    Args:
        channels: C.
        eps: ε, or what is added to |ε| where that is learned.
        learned_eps: learn a further ε a channel, from 1e-4, as the paper does where the image is
            a single pixel: without it the output there is hardly more than a sign.
    """

    def __init__(self, channels: int, eps: float = 1e-6, learned_eps: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.learned_eps = nn.Parameter(torch.full((channels,), 1e-4)) if learned_eps else None

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the normalised input."""
        square_NC11 = x_NCHW.square().mean((2, 3), keepdim=True) + self.eps
        if self.learned_eps is not None:
            square_NC11 = square_NC11 + self.learned_eps.abs()[:, None, None]
        scale_NC11 = self.weight[:, None, None] * square_NC11.rsqrt()
        # In the input's type, as torch's norms answer under autocast.
        return x_NCHW * scale_NC11.to(x_NCHW.dtype) + self.bias.to(x_NCHW.dtype)[:, None, None]


def groups_for(channels: int, most: int = 32) -> int:
    """How many groups group norm takes: the largest divisor up to `most` with pairs or more.

    32 is the choice of Wu and He, "Group Normalization", 2018.
    """
    fit = (g for g in range(min(most, channels // 2), 0, -1) if channels % g == 0)
    return next(fit, 1)


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(groups_for(channels), channels)


def _instance(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def _rms(channels: int) -> nn.Module:
    return RMSNorm2d(channels, eps=1e-6)


def _none(channels: int) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": LayerNorm2d,
    "group": _group,
    "instance": _instance,
    "rms": _rms,
    "filter_response": FilterResponseNorm,
    "none": _none,
}
"""What `norm` makes. All but `none` have a scale named `weight`; all but it and `rms`, a `bias`."""


def norm(name: str, channels: int) -> nn.Module:
    """A fresh normalisation of images: NCHW in, NCHW out.

    Args:
        name: one of `NORMS`.
        channels: C.

    Raises:
        ValueError: for an unknown name.
    """
    return choose("norm", name, NORMS)(channels)


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose kernels are standardised whenever they are used (Qiao et al., 2019).

    Each output channel's kernel has mean 0 and variance 1 over IHW. The scale that this takes
    away is given back by a norm behind it, usually group norm. NCHW in, NCHW out.
    """

    eps = 1e-5

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Returns the convolved input."""
        weight_OIHW = standardise(self.weight, self.eps)
        return self._conv_forward(x_NCHW, weight_OIHW, self.bias)  # type: ignore[no-any-return]


def standardise(weight_OIHW: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """The weights, less their mean and divided by their deviation, row by row."""
    variance, mean = torch.var_mean(weight_OIHW, (1, 2, 3), correction=0, keepdim=True)
    return (weight_OIHW - mean) * torch.rsqrt(variance + eps)


def _weight_norm(*args: Any, **options: Any) -> nn.Module:
    conv: nn.Module = weight_norm(nn.Conv2d(*args, **options))
    return conv


KERNELS: dict[str, Callable[..., nn.Module]] = {
    "plain": nn.Conv2d,
    "standardised": StandardisedConv2d,
    "weight_norm": _weight_norm,
}
"""What `convolution` makes."""


def convolution(kernels: str, *args: Any, **options: Any) -> nn.Module:
    """A convolution with its kernels as they are, standardised, or in weight normalisation.

    Weight normalisation learns a kernel's length and direction apart (Salimans and Kingma, 2016,
    equation 2); it is torch's parametrisation, so the state dict has
    ``parametrizations.weight.original0`` and ``original1`` instead of ``weight``.

    Args:
        kernels: one of `KERNELS`.
        args, options: of `torch.nn.Conv2d`.

    Raises:
        ValueError: for an unknown name.
    """
    return choose("kind of kernels", kernels, KERNELS)(*args, **options)
