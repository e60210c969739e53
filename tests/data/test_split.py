from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.data import SplitConfig
from orchestrator.data.split import allocate, digest, split

labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array)
shares = st.floats(0, 0.45)


@given(labels, shares, shares, st.integers(0, 99), st.booleans())
@settings(max_examples=200)
def test_each_sample_goes_to_one_split_and_each_class_is_trained(y, val, select, seed, stratify):
    found = split(y, SplitConfig(val=val, select=select, seed=seed, stratify=stratify))
    assert sorted(np.concatenate(list(found.values()))) == list(range(len(y)))
    for ids in found.values():
        assert ids.dtype == np.int64
        assert np.array_equal(ids, np.sort(ids))
    if stratify:
        assert set(y[found["train"]]) == set(y)


def test_shares_are_exact_in_all_and_in_each_class():
    y = np.repeat(np.arange(4), [1000, 500, 300, 200])
    found = split(y, SplitConfig(val=0.1, select=0.05))
    assert {name: np.bincount(y[ids]).tolist() for name, ids in found.items()} == {
        "train": [850, 425, 255, 170],
        "val": [100, 50, 30, 20],
        "select": [50, 25, 15, 10],
    }


def test_remainders_make_up_the_total():
    """Three classes of 33: shares of 9.9, 9.9 and 9.9 make 30 of 99, not 27."""
    assert allocate(np.array([33, 33, 33]), 0.3, np.array([32] * 3)).tolist() == [10, 10, 10]
    assert allocate(np.array([10, 5, 5]), 0.15, np.array([9, 4, 4])).tolist() == [1, 1, 1]
    assert allocate(np.array([14, 3, 3]), 0.15, np.array([13, 2, 2])).tolist() == [2, 1, 0]


def test_a_class_with_one_sample_is_trained():
    y = np.array([0] * 50 + [1])
    for seed in range(20):
        assert 50 in split(y, SplitConfig(val=0.4, select=0.4, seed=seed))["train"]


def test_the_split_is_pinned():
    """A golden split: ensembles refuse members whose digests differ, so it must never move."""
    y = np.arange(20) % 2
    found = split(y, SplitConfig(val=0.2, select=0.1, seed=3))
    assert found["val"].tolist() == [0, 1, 17, 18]
    assert found["select"].tolist() == [4, 13]


def test_only_the_splits_own_seed_moves_it():
    y = np.arange(200) % 3
    same, other = (split(y, SplitConfig(seed=seed)) for seed in (0, 1))
    assert not np.array_equal(same["val"], other["val"])
    assert np.array_equal(same["val"], split(y, SplitConfig(seed=0))["val"])


@pytest.mark.parametrize("change", ["labels", "ids"])
def test_digest_tells_splits_apart(change):
    y = np.arange(100, dtype=np.int64) % 4
    ids = split(y, SplitConfig())
    before = digest(y, ids)
    assert before == digest(y.copy(), dict(reversed(ids.items())))
    if change == "labels":
        y = y.copy()
        y[7] += 1
    else:
        train, val = ids["train"].copy(), ids["val"].copy()
        train[0], val[0] = val[0], train[0]
        ids = {**ids, "train": train, "val": val}
    assert digest(y, ids) != before
