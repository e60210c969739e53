"""Permutations that are the same on every platform and with every version of numpy."""

from __future__ import annotations

import numpy as np


def keys(count: int, seed: int) -> np.ndarray:
    """`count` random uint64. The raw stream of PCG64 is fixed; numpy's `permutation` is not."""
    raw: np.ndarray = np.random.PCG64(seed).random_raw(count)
    return raw


def permutation(count: int, seed: int) -> np.ndarray:
    """A random order of ``range(count)``: int64[count]."""
    order: np.ndarray = np.argsort(keys(count, seed), kind="stable")
    return order.astype(np.int64, copy=False)
