"""From a decoded image to the pixels that a model sees: one rule for training and serving.

1. The image is turned as its EXIF orientation says.
2. Transparency is laid over white, as a viewer shows it; a palette becomes its colours; 16-bit
   grey is scaled to 8 bits (v·255/65535, rounded).
3. One channel is ITU-R 601 luma; three are RGB.
4. Where the size differs, the image is resized (bilinear, antialiased) until it just covers the
   wanted height and width, then cropped at the centre. An image of the right size is untouched.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def to_pixels(
    image: Image.Image, channels: int, size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """Applies the rule.

    Args:
        channels: 1 or 3.
        size: (height, width); None keeps the image's own.

    Returns:
        uint8[H, W, channels].

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for pixels that it can't read.
    """
    image = flatten(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = fit(image, *size)
    pixels = np.asarray(image, np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def flatten(image: Image.Image) -> Image.Image:
    """The image as 8-bit L, RGB or CMYK, without palette and transparency."""
    if image.mode in _WIDE_GREY:
        wide = np.asarray(image).astype(np.float64) * (255 / 65535)
        return Image.fromarray(np.clip(np.rint(wide), 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode == "P" else image


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Covers height×width, then crops at the centre."""
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
