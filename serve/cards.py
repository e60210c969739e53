"""What is known of a model without loading it, or torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCard:
    """What a client may know about a model; small, picklable, without weights.

    Attributes:
        shape: (C, H, W) of one input.
        members: how many networks answer together.
        combine: what an ensemble averages; empty for a single model.
    """

    name: str
    shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    members: int = 1
    combine: str = ""
    version: str = "1"
