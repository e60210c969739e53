"""From an uploaded PNG or JPEG to the pixels a model was trained on, by one rule.

Content decides what a file is, never its name: PNG or JPEG, anything else is refused. Limits are
checked on the header, before a pixel is decoded. What follows is the rule that training used, see
`orchestrator.data.pixels`.

The result is uint8[C, H, W]. `to_unit` scales it to 0..1; mean and std are the predictor's job.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from orchestrator.data.pixels import to_pixels
from orchestrator.serve.errors import RequestError, without_frames

FORMATS = ("PNG", "JPEG")
_SCANS = 64
"""Scans of a progressive JPEG: encoders write some ten, and each one costs a pass over all
pixels, however few bytes it has."""
_LARGE = 4 * 10**6
"""Pixels above which images are decoded one at a time."""


@dataclass(frozen=True)
class ImageLimits:
    """What an upload may be at most; `seconds` is how long it may take to decode."""

    bytes: int = 32 * 2**20
    pixels: int = 64 * 10**6
    seconds: float = 5.0


DEFAULT_LIMITS = ImageLimits()


def decode(
    data: bytes,
    shape: tuple[int, ...],
    limits: ImageLimits = DEFAULT_LIMITS,
    large: contextlib.AbstractContextManager[object] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decodes an image file into the pixels a model takes.

    Args:
        data: the file's content.
        shape: (C, H, W) of the model's input; C is 1 or 3.
        limits: sizes and seconds beyond which a file is refused.
        large: entered while an image of many pixels is decoded.

    Returns:
        uint8[C, H, W].

    Raises:
        RequestError: if the file is no whole PNG or JPEG, or is above a limit (status 413).
    """
    check_channels(shape)
    channels, height, width = shape
    source = _Source(data)
    image = _open(source, limits)
    many = image.width * image.height > _LARGE
    with large if large is not None and many else contextlib.nullcontext():
        source.due = time.monotonic() + limits.seconds
        pixels = _pixels(source, image, channels, (height, width), limits)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_channels(shape: Sequence[int]) -> None:
    """Refuses image files for a model whose input no image file gives.

    Raises:
        RequestError: unless the model takes 1 or 3 channels.
    """
    if shape[0] not in (1, 3):
        raise RequestError(
            f"image files give 1 or 3 channels, but the model takes {shape[0]}; send numbers to "
            "the infer route"
        )


def to_unit(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Pixels in 0..1: uint8 is divided by 255, float32 is in 0..1 already."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels.astype(np.float32, copy=False)


class Decoder:
    """Decodes uploads in threads: small images side by side, large ones one at a time.

    So the memory that decoding takes is that of one image of `limits.pixels` at most, and a few
    small ones, whatever number of clients send.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decode")
        self._large = threading.Lock()

    async def decode(self, data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """See `decode`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, decode, data, shape, self.limits, self._large
            )
        except RequestError as error:
            raise without_frames(error) from None


class _SlowError(Exception):
    """Decoding goes on after it had to be done."""


class _Source(io.BytesIO):
    """A file's content that can't be read any more once `due` is over.

    Pillow decodes between two readings of a piece, so a file that would take minutes ends here.
    """

    due: float | None = None

    def read(self, size: int | None = -1) -> bytes:
        if self.due is not None and time.monotonic() > self.due:
            raise _SlowError
        return super().read(size)


def _open(source: _Source, limits: ImageLimits) -> Image.Image:
    data = source.getbuffer()
    if not data:
        raise RequestError("there is no image (0 bytes); send a PNG or JPEG file")
    if len(data) > limits.bytes:
        raise RequestError(
            f"an image may have {limits.bytes:,} bytes, this one has {len(data):,}", status=413
        )
    try:
        image = Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise RequestError(f"an image may have {limits.pixels:,} pixels", status=413) from None
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever a damaged header makes them stumble over.
        raise RequestError("the body is no PNG or JPEG file (judged by its content)") from None
    if image.width * image.height > limits.pixels:
        raise RequestError(
            f"an image may have {limits.pixels:,} pixels, this one has {image.width}×"
            f"{image.height} = {image.width * image.height:,}",
            status=413,
        )
    return image


def _pixels(
    source: _Source,
    image: Image.Image,
    channels: int,
    size: tuple[int, int],
    limits: ImageLimits,
) -> npt.NDArray[np.uint8]:
    """Decodes the pixels, and applies the rule."""
    slow = f"decoding an image may take {limits.seconds:g} seconds; send a smaller one"
    # Within a scan's data the marker's first byte is always followed by 0.
    if image.format == "JPEG" and source.getvalue().count(b"\xff\xda") > _SCANS:
        raise RequestError(slow, status=413)
    try:
        image.load()
        return to_pixels(image, channels, size)
    except _SlowError:
        raise RequestError(slow, status=413) from None
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever damaged data makes them stumble over.
        raise RequestError("the image is damaged or cut short") from None
