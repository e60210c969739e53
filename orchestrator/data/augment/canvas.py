"""Images while they are being augmented: geometry is gathered up and resampled only once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

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
    return torch.eye(2, 3).repeat(batch, 1, 1)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The map of doing `first` and then `second`."""
    linear = first[:, :, :2]
    both: Tensor = linear @ second
    both[:, :, 2] += first[:, :, 2]
    return both


def warp(images: Tensor, maps: Tensor, exact: Tensor) -> Tensor:
    """Images as their maps show them: copied where exact, interpolated elsewhere."""
    if bool(exact.all()):
        return copied(images, maps.to(images.device))
    if not bool(exact.any()):
        return interpolated(images, maps.to(images.device))
    # Sorted, cut and put back: whole rows are copied many times faster by index_select than
    # by indexing with a tensor.
    order, copies = exact.argsort(descending=True), int(exact.sum())
    there = order.to(images.device)
    first, rest = images.index_select(0, there).tensor_split([copies])
    maps = maps.index_select(0, order).to(images.device)
    moved = torch.cat([copied(first, maps[:copies]), interpolated(rest, maps[copies:])])
    return moved.index_select(0, there.argsort())


def copied(images: Tensor, maps: Tensor) -> Tensor:
    """Mirrors and shifts by whole pixels. Takes and gives uint8[B, C, H, W]."""
    rows = _places(images.shape[2], maps[:, 1, 1], maps[:, 1, 2])
    columns = _places(images.shape[3], maps[:, 0, 0], maps[:, 0, 2])
    # One row and one column of black, where every place outside the image is sent.
    return take(F.pad(images, (0, 1, 0, 1)), rows, columns)


def take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``out[b, c, i, j] = images[b, c, rows[b, i], columns[b, j]]``."""
    batch, channels, _, width = images.shape
    place = (rows * width)[:, :, None] + columns[:, None, :]
    flat = place.flatten(1)[:, None].expand(-1, channels, -1)
    found = images.flatten(2).gather(2, flat)
    return found.view(batch, channels, rows.shape[1], columns.shape[1])


def _places(size: int, sign: Tensor, shift: Tensor) -> Tensor:
    """int64[B, size]: where each row (or column) comes from; `size` stands for outside."""
    centre = (size - 1) / 2
    steps = torch.arange(size, device=sign.device) - centre
    places = (sign[:, None] * steps + shift[:, None] + centre).round().long()
    return torch.where((places < 0) | (places >= size), size, places)


def interpolated(images: Tensor, maps: Tensor) -> Tensor:
    """Bilinear resampling with black outside. Takes and gives uint8[B, C, H, W]."""
    height, width = images.shape[2:]
    # grid_sample measures in half sides, counted from the centre.
    scaled = maps / torch.tensor([width / 2, height / 2], device=maps.device)[:, None]
    x = torch.arange(width, device=maps.device) - (width - 1) / 2
    y = torch.arange(height, device=maps.device) - (height - 1) / 2
    across = scaled[:, :, 0, None] * x
    down = scaled[:, :, 1, None] * y + scaled[:, :, 2, None]
    # Planes of x and of y: adding them up is several times faster than interleaved pairs.
    grid = (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return moved.round_().to(torch.uint8)
