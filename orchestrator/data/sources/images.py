"""Decodes encoded images into one array, on every core, leaving out those that can't be read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.data.pixels import to_pixels
from orchestrator.errors import DataError


@dataclass(frozen=True)
class Decoded:
    """Images that could be read.

    Attributes:
        images: uint8[N, size, size, channels].
        kept: int64[N], each image's place among those that were given.
        corrupt: what was left out and why, one line each.
    """

    images: np.ndarray
    kept: np.ndarray
    corrupt: tuple[str, ...]


def decode(encoded: Path | bytes, size: int | None, channels: int) -> np.ndarray:
    """One image, by the rule of `orchestrator.data.pixels`.

    Args:
        size: None keeps the image's own size.

    Returns:
        uint8[H, W, channels].

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for what it can't read.
    """
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
        return to_pixels(opened, channels, None if size is None else (size, size))


def decode_all(
    encoded: Sequence[Path] | Sequence[bytes | None],
    name: Callable[[int], str],
    *,
    size: int | None,
    channels: int,
    max_corrupt: int,
) -> Decoded:
    """Decodes many images.

    Args:
        name: what image number N is called in messages.
        max_corrupt: how many unreadable images are tolerated.

    Raises:
        DataError: naming the unreadable ones when there are more, or when sizes differ.
    """
    images: np.ndarray | None = None
    kept: list[int] = []
    corrupt: list[str] = []

    def attempt(number: int) -> np.ndarray | str:
        data = encoded[number]
        try:
            return "there is no image" if data is None else decode(data, size, channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return str(error) or type(error).__name__

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In slices: `map` alone would hold every decoded image until it is asked for.
        for start in range(0, len(encoded), 1024):
            numbers = range(start, min(start + 1024, len(encoded)))
            for number, found in zip(numbers, pool.map(attempt, numbers), strict=True):
                if isinstance(found, str):
                    corrupt.append(f"{name(number)}: {found}")
                    _check_corrupt(corrupt, max_corrupt)
                    continue
                if images is None:
                    images = np.empty((len(encoded), *found.shape), np.uint8)
                _check_size(found, images, name(number))
                images[len(kept)] = found
                kept.append(number)
    if images is None:
        raise DataError("none of the images can be read:\n" + "\n".join(corrupt))
    return Decoded(images[: len(kept)], np.array(kept, np.int64), tuple(corrupt))


def _check_corrupt(corrupt: list[str], limit: int) -> None:
    if len(corrupt) > limit:
        raise DataError(
            f"more than data.source.max_corrupt={limit} images can't be read:\n"
            + "\n".join(corrupt)
            + "\nMend or remove them, or raise max_corrupt"
        )


def _check_size(found: np.ndarray, images: np.ndarray, name: str) -> None:
    if found.shape != images.shape[1:]:
        raise DataError(
            f"images must be of one size, but {name} is {found.shape[:2]} and an earlier one "
            f"{images.shape[1:3]}; set data.source.size"
        )


def corrupt_notes(split: str, decoded: Decoded) -> tuple[str, ...]:
    """What to tell the user about images that were left out."""
    if not decoded.corrupt:
        return ()
    return (
        f"{split}: {len(decoded.corrupt)} unreadable image(s) left out: "
        + "; ".join(decoded.corrupt),
    )
