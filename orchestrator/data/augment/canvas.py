"""Images while they are being augmented: geometry is gathered up and resampled only once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from orchestrator.data.augment.groups import Groups

# Letters: B sample, C channel, H row, W column.
# Maps are float[B, 2, 3] and lead from an output pixel (x, y, 1) to the input pixel it shows, in
# pixels counted from the image's centre; x grows to the right and y downwards.


class Augmentation(ABC):
    """A change of each sample by itself. Users' own augmentations derive from this."""

    @abstractmethod
    def apply(self, canvas: Canvas, generator: Generator) -> None:
        """Changes the canvas. Every draw is per sample and comes from `generator` (on the CPU)."""


class Mixer(ABC):
    """A change that blends samples of a batch, and their labels with them.

    Mixers come after every `Augmentation`, on normalised images.
    """

    @abstractmethod
    def mix(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Blends float32[B, C, H, W].

        Returns:
            The images; int64[B], each one's partner; float32[B], the share of itself that is
            left, so that targets become ``share * own + (1 - share) * partner's``.
        """


class Canvas:
    """A batch of images and the geometric changes that have not been carried out yet.

    Geometric changes that follow each other become one map per sample, and so one resampling.
    Shifts by whole pixels and mirrorings are copied exactly; samples with any other map are
    interpolated (bilinear). What comes from outside the image is black.

    Args:
        images: uint8[B, C, H, W].
    """

    def __init__(self, images: Tensor) -> None:
        self._pixels = images
        self._map: Tensor | None = None
        self._exact: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        batch, channels, height, width = self._pixels.shape
        return batch, channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self._pixels.device

    @property
    def pixels(self) -> Tensor:
        """uint8[B, C, H, W], with every geometric change so far carried out."""
        if self._map is not None and self._exact is not None:
            moved = warp(self._pixels, self._map, self._exact)
            self._pixels, self._map, self._exact = moved, None, None
        return self._pixels

    @pixels.setter
    def pixels(self, images: Tensor) -> None:
        self._pixels, self._map, self._exact = images, None, None

    def move(self, maps: Tensor, exact: Tensor) -> None:
        """Adds a geometric change, on the CPU.

        Args:
            maps: float32[B, 2, 3], see above.
            exact: bool[B], which maps only mirror and shift by whole pixels.
        """
        if self._map is None or self._exact is None:
            self._map, self._exact = maps, exact
        else:
            self._map, self._exact = compose(self._map, maps), self._exact & exact


def identity(batch: int) -> Tensor:
    """Maps that change nothing: float32[batch, 2, 3]."""
    return torch.eye(2, 3).expand(batch, 2, 3).contiguous()


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The map of doing `first` and then `second`."""
    linear = first[:, :, :2]
    both: Tensor = linear @ second
    both[:, :, 2] += first[:, :, 2]
    return both


def warp(images: Tensor, maps: Tensor, exact: Tensor) -> Tensor:
    """Images as their maps show them: copied where exact, interpolated elsewhere."""
    kind = torch.where(exact, (maps[:, 0, 0] < 0).long(), 2)
    groups = Groups(kind, 3)
    images, maps = groups.sort(images), groups.sort(maps).to(images.device)
    shifted, mirrored, _ = groups.sizes
    copies = shifted + mirrored
    moved = copied(images[:copies], maps[:copies])
    rest = interpolated(images[copies:], maps[copies:])
    return groups.join([moved[:shifted], moved[shifted:].flip(3), rest])


def copied(images: Tensor, maps: Tensor) -> Tensor:
    """Shifts by whole pixels and mirrors up and down; mirroring left and right is left out.

    Args:
        images: uint8[B, C, H, W].
        maps: float32[B, 2, 3].

    Returns:
        uint8[B, C, H, W].
    """
    batch, channels, height, width = images.shape
    if not batch:
        return images
    shift = maps[:, :, 2].round().long()
    # Before each row stand as many black pixels, before each image a black row and after it two.
    # So every row of the result is one run of `width` bytes, which is copied whole.
    wide = F.pad(images, (width, 0, 1, 2)).flatten()
    runs = wide.as_strided((len(wide) - width + 1, width), (1, 1))
    planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    first = (planes * (height + 3) + 1) * (2 * width) + width
    first += shift[:, :1, None].clamp(-width, width)
    rows = _rows(height, maps[:, 1, 1, None], shift[:, 1:])
    start = first + (rows * (2 * width))[:, None]
    return runs.index_select(0, start.flatten()).view(images.shape)


def _rows(height: int, sign: Tensor, shift: Tensor) -> Tensor:
    """int64[B, height]: where each row comes from; -1 and `height` stand for outside."""
    upright = torch.arange(height, device=sign.device)
    rows = torch.where(sign < 0, height - 1 - upright, upright)
    return (rows + shift).clamp_(-1, height)


def interpolated(images: Tensor, maps: Tensor) -> Tensor:
    """Bilinear resampling with black outside. Takes and gives uint8[B, C, H, W]."""
    if not len(images):
        return images
    half, x, y = _axes(*images.shape[2:], images.device)
    scaled = maps / half
    across = scaled[:, :, 0, None] * x
    down = scaled[:, :, 1, None] * y + scaled[:, :, 2, None]
    # Planes of x and of y: adding them up is several times faster than interleaved pairs.
    grid = (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return to_bytes(moved.round_())


@lru_cache(maxsize=16)
def _axes(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Half the sides, in which grid_sample measures, and the pixels' x and y from the centre."""
    half = torch.tensor([[width / 2], [height / 2]], device=device)
    x = torch.arange(width, device=device) - (width - 1) / 2
    y = torch.arange(height, device=device) - (height - 1) / 2
    return half, x, y


def to_bytes(values: Tensor) -> Tensor:
    """uint8 of floats in 0..255, rounded down."""
    # By way of int16: the direct conversion is not vectorised and takes three times as long.
    return values.to(torch.int16).to(torch.uint8)
