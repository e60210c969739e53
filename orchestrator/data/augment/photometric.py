"""Colour jitter and random erasing."""

from __future__ import annotations

import math

import torch
from torch import Generator

from orchestrator.config import data as section
from orchestrator.data.augment import tables
from orchestrator.data.augment.canvas import Augmentation, Canvas
from orchestrator.data.augment.draw import coin, rectangles, uniform

_ATTEMPTS = 10


class ColorJitter(Augmentation):
    """Brightness, contrast and saturation, in this order, each by a factor near 1."""

    def __init__(self, config: section.ColorJitter) -> None:
        self._config = config

    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Draws each factor from ``[1 - strength, 1 + strength]``."""
        given, batch = self._config, canvas.shape[0]
        pixels = canvas.pixels
        bright, contrast, saturation = (
            uniform(batch, 1 - strength, 1 + strength, generator).to(canvas.device)
            for strength in (given.brightness, given.contrast, given.saturation)
        )
        if given.brightness:
            pixels = tables.look_up(pixels, tables.brightness(bright))
        if given.contrast:
            pixels = tables.look_up(pixels, tables.contrast(pixels, contrast))
        if given.saturation:
            pixels = tables.saturate(pixels, saturation)
        canvas.pixels = pixels


class Erase(Augmentation):
    """Fills a random rectangle with the train split's mean (Zhong et al., 2020).

    Area and aspect are drawn until the rectangle fits, ten times at most, as the paper's
    Algorithm 1 and torchvision do.
    """

    def __init__(self, config: section.Erase) -> None:
        self._config = config
        self.mean: tuple[float, ...] = ()
        """Per channel, of pixels scaled to 0..1; set by the pipeline. Empty fills with black."""

    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Erases a rectangle of each sample with probability `p`."""
        batch, channels, height, width = canvas.shape
        given, device = self._config, canvas.device
        chosen = coin(batch, given.p, generator)
        low, high = given.area
        area = uniform(batch * _ATTEMPTS, low, high, generator) * (height * width)
        limit = math.log(given.aspect)
        aspect = uniform(batch * _ATTEMPTS, -limit, limit, generator).exp()
        tall = (area * aspect).sqrt().round().long().view(batch, _ATTEMPTS)
        wide = (area / aspect).sqrt().round().long().view(batch, _ATTEMPTS)
        fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        first = fits.long().argmax(1, keepdim=True)
        tall, wide = (side.gather(1, first).squeeze(1) for side in (tall, wide))
        kept = chosen & fits.any(1)
        top = (torch.rand(batch, generator=generator) * (height - tall + 1)).long()
        left = (torch.rand(batch, generator=generator) * (width - wide + 1)).long()
        bottom = torch.where(kept, top + tall, top)
        edges = (edge.to(device) for edge in (top, left, bottom, left + wide))
        inside = rectangles(edges, height, width)
        fill = torch.tensor(self.mean or (0.0,) * channels, device=device) * 255
        canvas.pixels = torch.where(
            inside, fill.round().to(torch.uint8)[:, None, None], canvas.pixels
        )
