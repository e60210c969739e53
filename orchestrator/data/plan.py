"""The epoch plan: which samples form which batch, as a pure function of (seed, epoch).

The unit of work is the numbered micro-batch. World size decides only who computes which:

    (seed, epoch) -> order of samples -> global batches -> micro-batches 0..count-1 -> ranks
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.data.shuffle import keys, permutation
from orchestrator.errors import DataError
from orchestrator.seeding import DATA_ORDER, derive


class EpochPlan:
    """Permutes row groups, shuffles samples within a window, cuts them into global batches.

    A window as large as the data is a full shuffle; a smaller one bounds how many samples a
    streaming loader must hold at once.

    Args:
        groups: samples that are stored, and so read, together: each one as its ids, or as the
            number of samples when ids count on from group to group.
        batch_size: samples of a global batch; the last batch of an epoch may be shorter.
        seed: the run's seed.
        window: samples that are shuffled together; None for all of them.

    Raises:
        DataError: if there are no samples.
    """

    def __init__(
        self,
        groups: Sequence[int] | Sequence[np.ndarray],
        batch_size: int,
        seed: int,
        window: int | None = None,
    ) -> None:
        if batch_size < 1 or (window is not None and window < 1):
            raise ValueError(
                f"batch_size and window must be positive, got {batch_size} and {window}"
            )
        self.groups = _ids(groups)
        self.samples = sum(map(len, self.groups))
        if not self.samples:
            raise DataError(
                "the train split has no samples; lower data.split.val and data.split.select, "
                "or give the source more samples"
            )
        self.batch_size, self.seed = batch_size, seed
        self.window = window or self.samples

    @property
    def steps_per_epoch(self) -> int:
        """Global batches, and so optimizer steps, of one epoch."""
        return -(-self.samples // self.batch_size)

    def group_order(self, epoch: int) -> np.ndarray:
        """The order in which an epoch reads the row groups: int64[groups]."""
        return permutation(len(self.groups), derive(self.seed, DATA_ORDER, epoch, 0))

    def order(self, epoch: int) -> np.ndarray:
        """Every sample's id once, in the order of an epoch: int64[samples]."""
        read = np.concatenate([self.groups[group] for group in self.group_order(epoch)])
        random = keys(self.samples, derive(self.seed, DATA_ORDER, epoch, 1))
        windows = np.arange(self.samples) // self.window
        shuffled: np.ndarray = read[np.lexsort((random, windows))]
        return shuffled

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The ids of each global batch. A resumed epoch starts at any index of this list."""
        cuts = range(self.batch_size, self.samples, self.batch_size)
        return np.split(self.order(epoch), list(cuts))


def micro_batch_count(batch_size: int, micro_batch: int | None, world_size: int) -> int:
    """Micro-batches of a global batch: a multiple of the ranks, none above `micro_batch` samples.

    Args:
        micro_batch: most samples of one micro-batch; None for one micro-batch a rank.
    """
    if micro_batch is None:
        return world_size
    return world_size * -(-batch_size // (world_size * micro_batch))


def micro_batches(ids: np.ndarray, count: int) -> list[np.ndarray]:
    """Cuts a global batch into `count` numbered parts whose sizes differ by at most one.

    Nothing is dropped or repeated; with fewer samples than parts the last parts are empty.
    """
    return np.array_split(ids, count)


def smallest_micro_batch(samples: int, batch_size: int, count: int) -> int:
    """Samples of the smallest micro-batch of an epoch, of those that have any.

    Args:
        count: micro-batches of a global batch.
    """
    last = samples % batch_size or batch_size
    return max(1, min(last, batch_size, samples) // count)


def share(count: int, rank: int, world_size: int) -> range:
    """Which of ``range(count)`` a rank computes: contiguous blocks, in the order of ranks."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def _ids(groups: Sequence[int] | Sequence[np.ndarray]) -> list[np.ndarray]:
    found, start = [], 0
    for group in groups:
        if isinstance(group, np.ndarray):
            found.append(group.astype(np.int64, copy=False))
        else:
            found.append(np.arange(start, start + group, dtype=np.int64))
            start += group
    return found
