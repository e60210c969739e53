from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def grey() -> np.ndarray:
    """uint8[12, 12] of many values."""
    return np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
