"""What networks that cut an image into patches share: which sizes fit, and grids of positions."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

SMALL_SIDE = 64
"""Images of up to this many pixels are small, as they are for a convolutional stem."""


def fit_patch(
    patch: int | str, image_size: tuple[int, int], *, small: int, large: int
) -> tuple[int, tuple[int, int]]:
    """The side of a patch, in pixels, and the grid (rows, columns) of patches in an image.

    Args:
        patch: a side, or `auto`.
        image_size: (height, width) in pixels.
        small, large: what `auto` takes up to `SMALL_SIDE` pixels, and above.

    Raises:
        ValueError: if the patch does not divide the image.
    """
    if patch == "auto":
        patch = small if max(image_size) <= SMALL_SIDE else large
    if not isinstance(patch, int) or isinstance(patch, bool) or patch < 1:
        raise ValueError(f"patch must be auto or a whole number >= 1, but got {patch!r}")
    height, width = image_size
    if height % patch or width % patch:
        common = math.gcd(height, width)
        fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise ValueError(
            f"patch must divide both sides of the image, but {patch} does not divide "
            f"{height}×{width} pixels; choose one of {fitting}, or resize the images"
        )
    return patch, (height // patch, width // patch)


def check_whole(**values: int) -> None:
    """Refuses counts that are not whole numbers of at least 1.

    Raises:
        ValueError: naming the first wrong one.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, but got {value!r}")


def resample_grid(x_LC: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Resamples vectors that lie on a grid, row by row, bicubically and without aliasing.

    Args:
        x_LC: a vector of C numbers for each of the L = rows × columns points.
        old: (rows, columns) that `x_LC` has.
        new: (rows, columns) to bring it to.

    Returns:
        The vectors of the new grid's points, of the same dtype; computed in single precision.
    """
    x_1CHW = x_LC.float().T.reshape(1, -1, *old)
    y_1CHW = F.interpolate(x_1CHW, size=new, mode="bicubic", antialias=True)
    return y_1CHW[0].flatten(1).T.contiguous().to(x_LC.dtype)
