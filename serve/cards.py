"""What is known of a model without loading it, or torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelCard:
    """What a client may know about a model; small, picklable, without weights.

    Attributes:
        shape: (C, H, W) of one image; (T,) tokens of one text.
        members: how many networks answer together.
        combine: what an ensemble averages; empty for a single model.
        reads: what one input is.
    """

    name: str
    shape: tuple[int, ...]
    label_names: tuple[str, ...]
    members: int = 1
    combine: str = ""
    version: str = "1"
    reads: Literal["image", "text"] = "image"
