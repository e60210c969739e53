"""Divides a source's training samples into `train`, `val` and `select`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from orchestrator.config.data import SplitConfig
from orchestrator.data.shuffle import permutation
from orchestrator.seeding import SPLIT, derive


def split(labels: np.ndarray, config: SplitConfig) -> dict[str, np.ndarray]:
    """Assigns every sample to one split.

    A function of the labels and the `split` section alone. Sizes are the rounded shares of all
    samples, spread over the classes by largest remainders; each class keeps one sample for
    training, so that a class with a single sample is never only validated.

    Args:
        labels: int64[N], the class of each sample.

    Returns:
        Sorted int64 ids for `train`, `val` and `select`: disjoint, and together ``range(N)``.
    """
    classes = labels if config.stratify else np.zeros(len(labels), np.int64)
    values, counts = np.unique(classes, return_counts=True)
    val = allocate(counts, config.val, counts - 1)
    select = allocate(counts, config.select, counts - 1 - val)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "select": []}
    for value, held, chosen in zip(values.tolist(), val, select, strict=True):
        ids = np.flatnonzero(classes == value)
        ids = ids[permutation(len(ids), derive(config.seed, SPLIT, value))]
        cuts = np.split(ids, [held, held + chosen])
        for name, part in zip(("val", "select", "train"), cuts, strict=True):
            parts[name].append(part)
    return {name: _sorted(found) for name, found in parts.items()}


def allocate(counts: np.ndarray, share: float, limits: np.ndarray) -> np.ndarray:
    """How many samples of each class make up `share` of all of them.

    Every class gives the floor of its share; those with the largest remainders give one more
    until ``round(share * sum(counts))`` is reached, none beyond its limit.

    Args:
        counts: int[K], samples of each class.
        limits: int[K], the most that each class may give.

    Returns:
        int64[K].
    """
    quota = counts * share
    given: np.ndarray = np.minimum(np.floor(quota).astype(np.int64), limits)
    missing = round(int(counts.sum()) * share) - int(given.sum())
    by_remainder = np.argsort(given - quota, kind="stable")
    for index in [i for i in by_remainder if given[i] < limits[i]][: max(missing, 0)]:
        given[index] += 1
    return given


def digest(labels: np.ndarray, ids: Mapping[str, np.ndarray]) -> str:
    """sha256 of every sample's label and of which sample went where."""
    found = hashlib.sha256(np.ascontiguousarray(labels, "<i8").tobytes())
    for name in sorted(ids):
        found.update(f"{name}:{len(ids[name])}:".encode())
        found.update(np.ascontiguousarray(ids[name], "<i8").tobytes())
    return found.hexdigest()


def _sorted(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
