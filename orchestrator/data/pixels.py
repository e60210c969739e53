"""From a decoded image to the pixels that a model sees: one rule for training and serving.

1. The image is turned as its EXIF orientation says.
2. Transparency is laid over white, as a viewer shows it; a palette becomes its colours; 16-bit
   grey is scaled to 8 bits (v·255/65535, rounded); of 16-bit colour Pillow gives the upper byte,
   which is at most 1 less.
3. One channel is ITU-R 601 luma; three are RGB; CMYK becomes RGB first.
4. Where the size differs, the image is resized (bilinear, antialiased) until it just covers the
   wanted height and width, then cropped at the centre. An image of the right size is untouched.
   Of an image that is far longer than the wanted one, the ends are cropped before it is resized.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_AT_ONCE = 2**20
"""Pixels that are changed at once: what is in between takes several times their memory."""
_LONGEST = 16
"""How many times as long as the wanted side a resized side may be."""


def to_pixels(
    image: Image.Image, channels: int, size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """Applies the rule.

    Args:
        image: may be turned in place.
        channels: 1 or 3.
        size: (height, width); None keeps the image's own.

    Returns:
        uint8[H, W, channels].

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for pixels that it can't read.
    """
    # In place, and never to the mode that it has: each would copy all pixels.
    ImageOps.exif_transpose(image, in_place=True)
    image = flatten(image)
    if image.mode != (wanted := "L" if channels == 1 else "RGB"):
        image = image.convert(wanted)
    if size is not None:
        image = fit(image, *size)
    pixels = np.asarray(image, np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def flatten(image: Image.Image) -> Image.Image:
    """The image as 8-bit L, RGB or CMYK, without palette and transparency."""
    if image.mode in _WIDE_GREY:
        return Image.fromarray(_narrow(np.asarray(image)))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _over_white(image)
    return image.convert("RGB") if image.mode == "P" else image


def _over_white(image: Image.Image) -> Image.Image:
    """An image without its transparency, made some rows at a time."""
    made = Image.new("RGB", image.size)
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, (255, 255, 255, 255))
        made.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return made


def _narrow(wide: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """16-bit numbers as 8-bit ones."""
    flat = wide.ravel()
    narrow = np.empty(flat.size, np.uint8)
    for at in range(0, flat.size, _AT_ONCE):
        part = flat[at : at + _AT_ONCE].astype(np.float64) * (255 / 65535)
        narrow[at : at + _AT_ONCE] = np.clip(np.rint(part), 0, 255)
    return narrow.reshape(wide.shape)


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Covers height×width, then crops at the centre."""
    if image.size == (width, height):
        return image
    image = _without_far_ends(image, height, width)
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _without_far_ends(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of an image that, resized, would be huge to no purpose: nearly all is cropped."""
    wide = max(1, round(_LONGEST * width / height * image.height))
    high = max(1, round(_LONGEST * height / width * image.width))
    if image.width <= wide and image.height <= high:
        return image
    new_width, new_height = min(image.width, wide), min(image.height, high)
    left, top = (image.width - new_width) // 2, (image.height - new_height) // 2
    return image.crop((left, top, left + new_width, top + new_height))
