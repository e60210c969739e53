"""Layers in a row that no module holds together, and the images that they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Layer = Callable[[torch.Tensor], torch.Tensor]
"""A module, or a function that owns nothing."""


def chain(layers: Sequence[Layer], x: torch.Tensor) -> torch.Tensor:
    """Applies layers one after another, as `nn.Sequential` does, without owning them."""
    for layer in layers:
        x = layer(x)
    return x


def check_side(model: str, image_size: tuple[int, int], least: int, way_out: str) -> None:
    """Refuses images that a model's halvings would shrink to nothing.

    Args:
        model: its name, for the message.
        image_size: (height, width) in pixels.
        least: the smallest side that works.
        way_out: what to do instead.

    Raises:
        ValueError: if either side is smaller.
    """
    if min(image_size) < least:
        height, width = image_size
        raise ValueError(
            f"{model} needs images of at least {least} pixels a side, but got image_size "
            f"{height}×{width}; {way_out}"
        )
