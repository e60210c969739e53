"""Mixup and CutMix: pairs of samples are blended, and their targets with them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from orchestrator.config import data as section
from orchestrator.data.augment.canvas import Mixer
from orchestrator.data.augment.draw import beta, coin, rectangles


class Mixup(Mixer):
    """``x = w·x + (1 − w)·x[partner]``, w from Beta(α, α) for each sample (Zhang et al., 2018)."""

    def __init__(self, config: section.Mixup) -> None:
        self._alpha, self._p = config.alpha, config.p

    def mix(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See `Mixer.mix`."""
        batch = len(images)
        partner = torch.randperm(batch, generator=generator)
        share = beta(batch, self._alpha, generator)
        share = torch.where(coin(batch, self._p, generator), share, 1.0).to(images.device)
        partner = partner.to(images.device)
        return torch.lerp(images[partner], images, share[:, None, None, None]), partner, share


class CutMix(Mixer):
    """A rectangle of the partner's pixels; targets are mixed by its exact area.

    Yun et al., 2019, equation 2: sides are √(1 − λ) of the image's, the centre is uniform, and
    what reaches beyond the image is cut off.
    """

    def __init__(self, config: section.CutMix) -> None:
        self._alpha, self._p = config.alpha, config.p

    def mix(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See `Mixer.mix`."""
        batch, _, height, width = images.shape
        partner = torch.randperm(batch, generator=generator)
        side = (1 - beta(batch, self._alpha, generator)).sqrt()
        side = torch.where(coin(batch, self._p, generator), side, 0.0)
        top, bottom = _span(side, height, generator)
        left, right = _span(side, width, generator)
        share = 1 - (bottom - top) * (right - left) / (height * width)
        edges = (edge.to(images.device) for edge in (top, left, bottom, right))
        inside = rectangles(edges, height, width)
        partner = partner.to(images.device)
        mixed = torch.where(inside, images[partner], images)
        return mixed, partner, share.to(images.device)


def _span(side: Tensor, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """First and last (excluded) row or column of each sample's rectangle, inside the image."""
    length = (side * size).long()
    centre = torch.randint(size, (len(side),), generator=generator)
    start = centre - length // 2
    return start.clamp(min=0), (start + length).clamp(max=size)
