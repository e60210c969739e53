"""The epoch plan's promises, on any sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.plan import (
    EpochPlan,
    micro_batch_count,
    micro_batches,
    share,
    smallest_micro_batch,
)
from orchestrator.data.shuffle import permutation
from orchestrator.errors import DataError

groups = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
small = st.integers(1, 12)


@given(groups, small, st.integers(0, 2**31), st.integers(0, 5), small)
@settings(max_examples=150)
def test_every_sample_once_an_epoch(sizes, batch_size, seed, epoch, window):
    plan = EpochPlan(sizes, batch_size, seed, window)
    batches = plan.global_batches(epoch)
    assert len(batches) == plan.steps_per_epoch
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 0 < len(batches[-1]) <= batch_size
    assert sorted(np.concatenate(batches)) == list(range(sum(sizes)))


@given(groups, small, st.integers(0, 2**31), small)
@settings(max_examples=50)
def test_a_plan_is_a_pure_function_of_seed_and_epoch(sizes, batch_size, seed, window):
    first, second = (EpochPlan(sizes, batch_size, seed, window) for _ in range(2))
    second.global_batches(7)  # what was asked before does not matter
    for epoch in (0, 1):
        pairs = zip(first.global_batches(epoch), second.global_batches(epoch), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@given(st.integers(1, 60), small, small, st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=100)
def test_ranks_share_each_batch_whatever_their_number(samples, batch_size, micro, world, start):
    """Every rank's micro-batches together are the global batch, from any cursor on."""
    plan = EpochPlan([samples], batch_size, 0)
    count = micro_batch_count(batch_size, micro, world)
    assert count % world == 0
    for ids in plan.global_batches(3)[start:]:
        cuts = micro_batches(ids, count)
        sizes = [len(cut) for cut in cuts]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= micro
        numbers = [number for rank in range(world) for number in share(count, rank, world)]
        assert numbers == list(range(count))
        assert np.array_equal(np.concatenate([cuts[number] for number in numbers]), ids)
        assert {len(share(count, rank, world)) for rank in range(world)} == {count // world}


@given(st.integers(1, 60), small, small, st.integers(1, 5))
@settings(max_examples=100)
def test_the_smallest_micro_batch_is_known_beforehand(samples, batch_size, micro, world):
    count = micro_batch_count(batch_size, micro, world)
    batches = EpochPlan([samples], batch_size, 0).global_batches(0)
    sizes = [len(cut) for ids in batches for cut in micro_batches(ids, count)]
    assert smallest_micro_batch(samples, batch_size, count) == min(filter(None, sizes))


def test_worked_example_of_a_short_last_batch():
    cuts = micro_batches(np.arange(5), micro_batch_count(8, 2, 2))
    assert [cut.tolist() for cut in cuts] == [[0, 1], [2], [3], [4]]
    assert [len(cut) for cut in micro_batches(np.arange(2), 4)] == [1, 1, 0, 0]
    assert micro_batch_count(8, None, 3) == 3
    assert micro_batch_count(10, 2, 2) == 6


def test_a_window_bounds_how_far_samples_travel():
    """A window of w samples holds those w that a group-ordered reader has read by then."""
    plan = EpochPlan([10] * 10, batch_size=5, seed=1, window=20)
    read = np.concatenate([plan.groups[group] for group in plan.group_order(2)])
    order = plan.order(2)
    for start in range(0, 100, 20):
        assert set(order[start : start + 20]) == set(read[start : start + 20])
    assert not np.array_equal(order, read)
    assert not np.array_equal(plan.group_order(2), plan.group_order(3))


def test_ids_of_groups_are_kept():
    plan = EpochPlan([np.array([4, 9]), np.array([70])], 2, 0)
    assert sorted(plan.order(0)) == [4, 9, 70]


def test_epochs_and_seeds_differ():
    orders = [EpochPlan([1000], 10, seed).order(epoch) for seed in (0, 1) for epoch in (0, 1)]
    for first in range(4):
        for second in range(first):
            # Two random permutations agree in one place on average.
            assert (orders[first] == orders[second]).sum() < 10


def test_permutation_is_pinned():
    """A golden order: it must never change, or resumed runs would see other batches."""
    assert permutation(8, 12345).tolist() == [7, 0, 1, 5, 4, 6, 3, 2]


def test_no_samples_is_refused():
    with pytest.raises(DataError, match=r"train split has no samples.*data\.split\.val"):
        EpochPlan([0, 0], 4, 0)
