"""Crop, flip and affine maps: draws that become one map per sample."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from orchestrator.config import data as section
from orchestrator.data.augment.canvas import Augmentation, Canvas, identity
from orchestrator.data.augment.draw import coin, uniform
from orchestrator.errors import DataError


class Crop(Augmentation):
    """Pads on every side, then crops back at a random place (He et al., 2016)."""

    def __init__(self, config: section.Crop) -> None:
        self._padding, self._mode = config.padding, config.mode

    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Shifts each sample by up to `padding` whole pixels in x and y."""
        batch, padding = canvas.shape[0], self._padding
        shift = torch.randint(-padding, padding + 1, (batch, 2), generator=generator)
        if self._mode == "reflect":
            canvas.pixels = reflected(canvas.pixels, shift.to(canvas.device), padding)
            return
        maps = identity(batch)
        maps[:, :, 2] = shift.float()
        canvas.move(maps, torch.ones(batch, dtype=torch.bool))


def reflected(images: Tensor, shift: Tensor, padding: int) -> Tensor:
    """Shifts by whole pixels, the border mirrored without repeating the outermost pixel.

    Args:
        images: uint8[B, C, H, W].
        shift: int64[B, 2], x and y.

    Raises:
        DataError: if the padding is not smaller than the image.
    """
    height, width = images.shape[2:]
    if padding >= min(height, width):
        raise DataError(
            f"data.augment: crop with mode=reflect needs padding < side, but got "
            f"padding={padding} for {height}×{width} pixels"
        )
    columns, rows = (
        _mirror(torch.arange(size, device=images.device) + shift[:, axis, None], size)
        for axis, size in ((0, width), (1, height))
    )
    return take(images, rows, columns)


def take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``out[b, c, i, j] = images[b, c, rows[b, i], columns[b, j]]``."""
    batch, channels, _, width = images.shape
    place = (rows * width)[:, :, None] + columns[:, None, :]
    flat = place.flatten(1)[:, None].expand(-1, channels, -1)
    found = images.flatten(2).gather(2, flat)
    return found.view(batch, channels, rows.shape[1], columns.shape[1])


def _mirror(places: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - places.abs()).abs()


class Flip(Augmentation):
    """Mirrors left and right."""

    def __init__(self, config: section.Flip) -> None:
        self._p = config.p

    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Mirrors each sample with probability `p`."""
        batch = canvas.shape[0]
        maps = identity(batch)
        maps[coin(batch, self._p, generator), 0, 0] = -1
        canvas.move(maps, torch.ones(batch, dtype=torch.bool))


class Affine(Augmentation):
    """Rotates, shifts, scales and shears (along x), as torchvision's RandomAffine draws it."""

    def __init__(self, config: section.Affine) -> None:
        self._config = config

    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Draws angle, shift, scale and shear for each sample."""
        given = self._config
        batch, _, height, width = canvas.shape
        limit = torch.tensor([given.translate * width, given.translate * height])
        angle = uniform(batch, -given.degrees, given.degrees, generator)
        shift = torch.stack([uniform(batch, -1, 1, generator) for _ in "xy"], 1) * limit
        low, high = given.scale
        scale = uniform(batch, low, high, generator)
        shear = uniform(batch, -given.shear, given.shear, generator)
        chosen = coin(batch, given.p, generator)
        maps = torch.where(
            chosen[:, None, None], affine(angle, shift, scale, shear), identity(batch)
        )
        canvas.move(maps, ~chosen)


def rotate(config: section.Rotate) -> Affine:
    """An affine change that only rotates."""
    return Affine(section.Affine(degrees=config.degrees, p=config.p))


def affine(angle: Tensor, shift: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Maps of a rotation, shear along x and scaling about the centre, followed by a shift.

    Args:
        angle: degrees, clockwise.
        shift: float[B, 2], pixels to the right and downwards.
        scale: 2 shows everything twice as large.
        shear: degrees.

    Returns:
        float32[B, 2, 3]; the inverse of the change, because maps lead back to the input.
    """
    turn, slant = angle * (math.pi / 180), (shear * (math.pi / 180)).tan()
    cos, sin = turn.cos(), turn.sin()
    linear = torch.stack(
        [
            torch.stack([cos - sin * slant, cos * slant + sin], 1),
            torch.stack([-sin, cos], 1),
        ],
        1,
    )
    linear = linear / scale[:, None, None]
    return torch.cat([linear, -(linear @ shift[:, :, None])], 2)
