"""From an uploaded PNG or JPEG to the pixels a model was trained on, by one rule.

Content decides what a file is, never its name: PNG or JPEG, anything else is refused. Limits are
checked on the header, before a pixel is decoded. What follows is the rule that training used, see
`orchestrator.data.pixels`.

The result is uint8[C, H, W]. `to_unit` scales it to 0..1; mean and std are the predictor's job.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from orchestrator.data.pixels import to_pixels
from orchestrator.serve.errors import RequestError

FORMATS = ("PNG", "JPEG")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, struct.error, zlib.error)


@dataclass(frozen=True)
class ImageLimits:
    """What an upload may be at most."""

    bytes: int = 32 * 2**20
    pixels: int = 64 * 10**6


DEFAULT_LIMITS = ImageLimits()


def decode(
    data: bytes, shape: tuple[int, ...], limits: ImageLimits = DEFAULT_LIMITS
) -> npt.NDArray[np.uint8]:
    """Decodes an image file into the pixels a model takes.

    Args:
        data: the file's content.
        shape: (C, H, W) of the model's input; C is 1 or 3.
        limits: sizes beyond which a file is refused.

    Returns:
        uint8[C, H, W].

    Raises:
        RequestError: if the file is no whole PNG or JPEG, or is above a limit (status 413).
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise RequestError(
            f"image files give 1 or 3 channels, but the model takes {channels}; send numbers to "
            "the infer route"
        )
    image = _oriented(_open(data, limits))
    return np.ascontiguousarray(to_pixels(image, channels, (height, width)).transpose(2, 0, 1))


def to_unit(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Pixels in 0..1: uint8 is divided by 255, float32 is in 0..1 already."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels.astype(np.float32, copy=False)


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    if not data:
        raise RequestError("the request has no image; send a PNG or JPEG file as its body")
    if len(data) > limits.bytes:
        raise RequestError(
            f"an image may have {limits.bytes:,} bytes, this one has {len(data):,}", status=413
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RequestError(f"an image may have {limits.pixels:,} pixels", status=413) from None
    except _DAMAGE:
        raise RequestError("the body is no PNG or JPEG file (judged by its content)") from None
    if image.width * image.height > limits.pixels:
        raise RequestError(
            f"an image may have {limits.pixels:,} pixels, this one has {image.width}×"
            f"{image.height} = {image.width * image.height:,}",
            status=413,
        )
    return image


def _oriented(image: Image.Image) -> Image.Image:
    """Decodes the pixels and turns them as EXIF says."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise RequestError(f"the image is damaged or cut short ({error})") from None
