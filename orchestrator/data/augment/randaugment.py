"""RandAugment (Cubuk et al., 2020), with operations drawn for each sample by itself.

Magnitudes are those of the paper's code, as torchvision has them: 31 bins over the ranges below.
An image's geometric operations become one map and one bilinear resampling; the photometric ones
follow in the order in which they were drawn. Photometric tables and resampling commute except at
the black border and in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Generator, Tensor

from orchestrator.config import data as section
from orchestrator.data.augment import tables
from orchestrator.data.augment.canvas import Augmentation, Canvas, compose
from orchestrator.data.augment.groups import Groups

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

_CODE = {name: code for code, name in enumerate(OPERATIONS)}
_BINS = 30
_LARGEST_SHEAR = 0.3
_LARGEST_SHIFT = 150 / 331
"""Of the side: the paper's 150 pixels of 331."""
_LARGEST_ANGLE = 30.0
_LARGEST_CHANGE = 0.9
"""Of the factors of brightness, colour, contrast and sharpness, above or below 1."""
_BITS_LOST = 4

_GROUPS: tuple[tuple[str, ...], ...] = (
    OPERATIONS[:6],
    ("color",),
    ("sharpness",),
    ("brightness", "posterize", "solarize"),
    ("contrast",),
    ("autocontrast",),
    ("equalize",),
)
"""What is carried out together after the geometry. The first group is done by then; the last four
are tables, of which the first do not depend on the image."""


class RandAugment(Augmentation):
    """`operations` changes in a row, with one magnitude and a random sign.

    There are only 28 pairs of an operation and a sign, so what they stand for is computed once.
    """

    def __init__(self, config: section.RandAugment) -> None:
        self._operations = config.operations
        # Of each pair, at 2 * code for the negative sign and at 2 * code + 1 for the positive.
        self._code = torch.arange(len(OPERATIONS)).repeat_interleave(2)
        self._strength = torch.tensor([-1, 1]).repeat(len(OPERATIONS)) * (config.magnitude / _BINS)
        self._factor = 1 + self._strength * _LARGEST_CHANGE
        self._group = _group_of(self._code)
        self._table = _fixed_tables(self._code, self._strength)
        resampled = [_CODE[name] for name in ("shear_x", "shear_y", "rotate")]
        inexact = torch.isin(self._code, torch.tensor(resampled))
        self._exact = ~inexact | (config.magnitude == 0)
        self._maps: dict[tuple[int, int], Tensor] = {}

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
        pairs = codes * 2 + (signs > 0)
        known = self._known_maps(*canvas.shape[2:])
        maps = reduce(compose, (known.index_select(0, pair) for pair in pairs))
        canvas.move(maps, self._exact[pairs].all(0))
        for pair in pairs:
            canvas.pixels = self._photometric(canvas.pixels, pair)

    def _known_maps(self, height: int, width: int) -> Tensor:
        size = (height, width)
        if size not in self._maps:
            self._maps[size] = geometric(self._code, self._strength, height, width)
        return self._maps[size]

    def _photometric(self, images: Tensor, pair: Tensor) -> Tensor:
        """Each sample's photometric operation, samples of one group at a time."""
        groups = Groups(self._group.index_select(0, pair), len(_GROUPS))
        images, pair = groups.sort(images), groups.sort(pair.to(images.device))
        parts = torch.split(images, groups.sizes)
        pairs = torch.split(pair, groups.sizes)
        done, coloured, sharp = parts[:3]
        if len(coloured):
            coloured = tables.saturate(coloured, _picked(self._factor, pairs[1]))
        if len(sharp):
            sharp = tables.sharpen(sharp, _picked(self._factor, pairs[2]))
        tabled = images[sum(groups.sizes[:3]) :]
        tabled = tables.look_up(tabled, self._tables(parts[3:], pairs[3:]))
        return groups.join([done, coloured, sharp, tabled])

    def _tables(self, parts: Sequence[Tensor], pairs: Sequence[Tensor]) -> Tensor:
        """Tables of the last four groups: uint8[B, C, 256]."""
        fixed, contrasted, stretched, evened = parts
        made = [_picked(self._table, pairs[0])]
        if len(contrasted):
            made.append(tables.contrast(contrasted, _picked(self._factor, pairs[1])))
        if len(stretched):
            made.append(tables.autocontrast(stretched))
        if len(evened):
            made.append(tables.equalize(evened))
        return torch.cat([table.expand(-1, fixed.shape[1], -1) for table in made])


def _picked(values: Tensor, pair: Tensor) -> Tensor:
    return values.to(pair.device).index_select(0, pair)


def _group_of(code: Tensor) -> Tensor:
    """int64[B]: where in `_GROUPS` each operation is."""
    group = {name: number for number, names in enumerate(_GROUPS) for name in names}
    return torch.tensor([group[OPERATIONS[c]] for c in code.tolist()])


def _fixed_tables(code: Tensor, strength: Tensor) -> Tensor:
    """Tables of operations that do not depend on the image: uint8[B, 1, 256].

    Args:
        code: int64[B], indices into `OPERATIONS`; others get brightness's table, which is not used.
        strength: float[B] in -1..1; posterize and solarize use its size only.
    """
    size = strength.abs()
    bits = 8 - round(float(size[0]) * _BITS_LOST)
    solarized = tables.solarize(255 * (1 - size))
    bright = tables.brightness(1 + strength * _LARGEST_CHANGE)
    is_posterize, is_solarize = (
        (code == _CODE[name])[:, None, None] for name in ("posterize", "solarize")
    )
    table = torch.where(is_solarize, solarized, bright)
    return torch.where(is_posterize, tables.posterize(bits), table)


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
