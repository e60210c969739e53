"""Generated images whose class can be learnt: for tests, benchmarks and dry runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.config.data import Synthetic
from orchestrator.data.types import Samples, SourceData

_CELL = 4
"""Pixels on a side of one prototype's cell: coarse enough to survive crops and small shifts."""
_GREY, _CONTRAST = 128, 48


def load(config: Synthetic, cache: Path) -> SourceData:
    """Draws one coarse random prototype per class, then samples as prototype plus noise."""
    random = np.random.default_rng(config.seed)
    cells = -(-config.size // _CELL)
    coarse = random.standard_normal((config.classes, cells, cells, config.channels), np.float32)
    prototypes = coarse.repeat(_CELL, 1).repeat(_CELL, 2)[:, : config.size, : config.size]
    train = _samples(config, prototypes, config.samples, random)
    test = _samples(config, prototypes, config.test_samples, random)
    names = tuple(f"class {index}" for index in range(config.classes))
    return SourceData(train, test if config.test_samples else None, names)


def _samples(
    config: Synthetic, prototypes: np.ndarray, count: int, random: np.random.Generator
) -> Samples:
    labels = random.permutation(np.arange(count, dtype=np.int64) % config.classes)
    images = np.empty((count, config.size, config.size, config.channels), np.uint8)
    for start in range(0, count, 1024):
        part = prototypes[labels[start : start + 1024]]
        noisy = part + config.noise * random.standard_normal(part.shape, np.float32)
        images[start : start + 1024] = np.clip(_GREY + _CONTRAST * noisy, 0, 255)
    return Samples({"image": images}, {"label": labels})
