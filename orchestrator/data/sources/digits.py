"""The 1,797 handwritten digits of 8×8 pixels that scikit-learn brings along."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.config.data import Digits, SplitConfig
from orchestrator.data.split import split
from orchestrator.data.types import Samples, SourceData

_TEST = SplitConfig(val=0.2, select=0, seed=0)
"""The data set has no official test split: this one is fixed, whatever data.split says."""


def load(config: Digits, cache: Path) -> SourceData:
    """Scales the 17 grey levels to 0..255 and holds a stratified fifth out as test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    ids = split(labels, _TEST)
    train, test = (
        Samples({"image": images[ids[name]]}, {"label": labels[ids[name]]})
        for name in ("train", "val")
    )
    return SourceData(train, test, tuple(map(str, bunch.target_names)))
