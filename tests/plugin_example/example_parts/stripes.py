"""Stripes of two classes."""

import numpy as np

from orchestrator.data.types import Samples, SourceData


def load(config, cache):
    label = np.arange(64, dtype=np.int64) % 2
    rows = (np.indices((8, 8))[0] % 2 * 255).astype(np.uint8)
    images = np.stack([rows.T if one else rows for one in label])[..., None]
    return SourceData(
        Samples({"image": images}, {"label": label}), None, ("horizontal", "vertical")
    )
