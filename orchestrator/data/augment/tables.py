"""Photometric changes as tables of 256 entries: one per sample, and per channel where needed.

Values follow Pillow and torchvision: computed in floating point, cut to 0..255, rounded down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.data.augment.canvas import to_bytes

# Letters: B sample, C channel, V value 0..255.

_GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R 601-2 luma), as torchvision has them."""


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """``out = tables[b, c, images[b, c, ...]]``.

    Args:
        images: uint8[B, C, H, W].
        tables: uint8[B or 1, C or 1, 256].
    """
    batch, channels = images.shape[:2]
    wide = tables.expand(batch, channels, 256)
    return wide.gather(2, images.flatten(2).long()).view(images.shape)


def values(device: torch.device | str = "cpu") -> Tensor:
    """0..255 as float32[256]."""
    return torch.arange(256, device=device, dtype=torch.float32)


def bytes_of(table: Tensor) -> Tensor:
    """Cuts to 0..255 and rounds down."""
    return to_bytes(table.clamp(0, 255))


def brightness(factor: Tensor) -> Tensor:
    """Multiplies by float[B]: uint8[B, 1, 256]."""
    return bytes_of(factor[:, None, None] * values(factor.device))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Moves values away from the mean of the image's grey by float[B]: uint8[B, 1, 256]."""
    mean = grey(images).float().mean((1, 2, 3))[:, None, None]
    factor = factor[:, None, None]
    return bytes_of(values(images.device) * factor + mean * (1 - factor))


def solarize(threshold: Tensor) -> Tensor:
    """Inverts what is at least float[B]: uint8[B, 1, 256]."""
    v = values(threshold.device)
    return bytes_of(torch.where(v >= threshold[:, None, None], 255 - v, v))


def posterize(bits: int, device: torch.device | str = "cpu") -> Tensor:
    """Keeps the highest `bits` bits: uint8[1, 1, 256]."""
    v = torch.arange(256, device=device)
    kept: Tensor = v & (256 - 2 ** (8 - bits))
    return kept.to(torch.uint8)[None, None]


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255: uint8[B, C, 256]. A flat channel stays as it is."""
    flat = images.flatten(2)  # `amin` and `amax` are faster than `aminmax` on bytes
    low, high = (edge.float()[:, :, None] for edge in (flat.amin(2), flat.amax(2)))
    v = values(images.device)
    stretched = (v - low) * (255 / (high - low))
    return bytes_of(torch.where(high > low, stretched, v))


def equalize(images: Tensor) -> Tensor:
    """Evens out each channel's histogram as Pillow does: uint8[B, C, 256]."""
    flat = images.flatten(2).long()
    batch, channels, pixels = flat.shape
    counted = flat.new_zeros(batch, channels, 256)
    counted.scatter_add_(2, flat, flat.new_ones(1).expand_as(flat))
    highest = counted.gather(2, flat.amax(2, keepdim=True))
    step = (pixels - highest) // 255
    below = counted.cumsum(2) - counted
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    unchanged = torch.arange(256, device=images.device)
    return torch.where(step > 0, table, unchanged).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """uint8[B, 1, H, W]: luma of three channels, the mean of any other number."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] == 3:
        weights = torch.tensor(_GREY, device=images.device)[:, None, None]
        return (images.float() * weights).sum(1, keepdim=True).to(torch.uint8)
    return images.float().mean(1, keepdim=True).to(torch.uint8)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Moves colours away from grey by float[B]; one channel stays as it is."""
    return images if images.shape[1] == 1 else _blend(images, grey(images), factor)


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Moves away from a smoothed image by float[B]; the outermost pixels stay as they are."""
    if min(images.shape[2:]) < 3:
        return images
    source = images.float()
    # Pillow's SMOOTH filter: each pixel of 3×3 weighs 1, the centre 5, over 13.
    rows = source[:, :, :-2] + source[:, :, 1:-1] + source[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    around.add_(source[:, :, 1:-1, 1:-1], alpha=4)
    smooth = source.clone()
    smooth[:, :, 1:-1, 1:-1] = around.div_(13).round_()
    return _blend(source, smooth, factor)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return bytes_of(images * factor + other * (1 - factor))
