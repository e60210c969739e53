"""Folders of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, start: int, count: int) -> None:
    """Adds grey images of two classes, so many of each, numbered from `start`."""
    random = np.random.default_rng(start)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            image = Image.fromarray(random.integers(0, 256, (8, 8), np.uint8))
            image.save(folder / name / f"{number}.png")
