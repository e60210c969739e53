"""RandAugment (Cubuk et al., 2020), with operations drawn for each sample by itself.

Magnitudes are those of the paper's code, as torchvision has them: 31 bins over the ranges below.
An image's geometric operations become one map and one bilinear resampling; the photometric ones
follow in the order in which they were drawn. Photometric tables and resampling commute except at
the black border and in rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from orchestrator.config import data as section
from orchestrator.data.augment import tables
from orchestrator.data.augment.canvas import Augmentation, Canvas, compose, identity

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""The paper's fourteen, each equally likely."""

_PHOTOMETRIC = frozenset(OPERATIONS[6:])
_CODE = {name: code for code, name in enumerate(OPERATIONS)}
_BINS = 30
_LARGEST_SHEAR = 0.3
_LARGEST_SHIFT = 150 / 331
"""Of the side: the paper's 150 pixels of 331."""
_LARGEST_ANGLE = 30.0
_LARGEST_CHANGE = 0.9
"""Of the factors of brightness, colour, contrast and sharpness, above or below 1."""
_BITS_LOST = 4


class RandAugment(Augmentation):
    """`operations` changes in a row, with one magnitude and a random sign."""

    def __init__(self, config: section.RandAugment) -> None:
        self._operations = config.operations
        self._strength = config.magnitude / _BINS

    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Draws operations and signs for each sample, then carries them out together."""
        size = (self._operations, canvas.shape[0])
        codes = torch.randint(len(OPERATIONS), size, generator=generator)
        signs = torch.randint(2, size, generator=generator) * 2 - 1
        self.perform(canvas, codes, signs)

    def perform(self, canvas: Canvas, codes: Tensor, signs: Tensor) -> None:
        """Carries operations out.

        Args:
            codes: int64[operations, B], indices into `OPERATIONS`, on the CPU.
            signs: int64[operations, B], 1 or -1.
        """
        _, _, height, width = canvas.shape
        maps = identity(codes.shape[1])
        exact = torch.ones(codes.shape[1], dtype=torch.bool)
        for code, sign in zip(codes, signs, strict=True):
            maps = compose(maps, geometric(code, sign * self._strength, height, width))
            exact &= (code != _CODE["shear_x"]) & (code != _CODE["shear_y"])
            exact &= code != _CODE["rotate"]
        canvas.move(maps, exact | (self._strength == 0))
        for code, sign in zip(codes, signs, strict=True):
            canvas.pixels = _by_operation(canvas.pixels, code, sign * self._strength)


def _by_operation(images: Tensor, code: Tensor, strength: Tensor) -> Tensor:
    """Each sample's photometric operation, samples of one operation at a time."""
    order = code.argsort()
    there = order.to(images.device)
    counts = code.bincount(minlength=len(OPERATIONS)).tolist()
    changed = [
        photometric(name, part, force) if len(part) and name in _PHOTOMETRIC else part
        for name, part, force in zip(
            OPERATIONS,
            torch.split(images.index_select(0, there), counts),
            torch.split(strength[order].to(images.device), counts),
            strict=True,
        )
    ]
    return torch.cat(changed).index_select(0, there.argsort())


def geometric(code: Tensor, strength: Tensor, height: int, width: int) -> Tensor:
    """Maps of one operation per sample; the identity for photometric ones.

    Shears keep the upper left corner in place, as the paper's code does.

    Args:
        code: int64[B], indices into `OPERATIONS`.
        strength: float[B] in -1..1.

    Returns:
        float32[B, 2, 3].
    """

    def only(name: str, value: Tensor) -> Tensor:
        return torch.where(code == _CODE[name], value, 0.0)

    shear_x = only("shear_x", strength * _LARGEST_SHEAR)
    shear_y = only("shear_y", strength * _LARGEST_SHEAR)
    shift_x = only("translate_x", (strength * (_LARGEST_SHIFT * width)).trunc())
    shift_y = only("translate_y", (strength * (_LARGEST_SHIFT * height)).trunc())
    turn = only("rotate", strength * math.radians(_LARGEST_ANGLE))
    cos, sin = turn.cos(), turn.sin()
    across = torch.stack([cos, shear_x - sin, shear_x * (height / 2) - shift_x], 1)
    down = torch.stack([shear_y + sin, cos, shear_y * (width / 2) - shift_y], 1)
    return torch.stack([across, down], 1)


def photometric(name: str, images: Tensor, strength: Tensor) -> Tensor:
    """One operation on uint8[B, C, H, W].

    Args:
        strength: float[B] in -1..1; posterize and solarize use its size only.
    """
    factor = 1 + strength * _LARGEST_CHANGE
    match name:
        case "color":
            return tables.saturate(images, factor)
        case "sharpness":
            return tables.sharpen(images, factor)
        case "brightness":
            table = tables.brightness(factor)
        case "contrast":
            table = tables.contrast(images, factor)
        case "posterize":
            bits = 8 - round(float(strength[0].abs()) * _BITS_LOST)
            table = tables.posterize(bits, images.device)
        case "solarize":
            table = tables.solarize(255 * (1 - strength.abs()))
        case "autocontrast":
            table = tables.autocontrast(images)
        case _:
            table = tables.equalize(images)
    return tables.look_up(images, table)
