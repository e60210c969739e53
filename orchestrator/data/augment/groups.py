"""Samples of a batch sorted into groups that are worked on together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Groups:
    """Which samples of a batch belong together.

    Sorting, cutting and putting back copies whole samples. This is many times faster than reading
    and writing through masks.

    Args:
        of: int64[B] on the CPU, each sample's group, in ``0..count - 1``.
        count: how many groups there are; any of them may be empty.
    """

    def __init__(self, of: Tensor, count: int) -> None:
        self._order = of.argsort()
        self._back = self._order.argsort()
        self.sizes: list[int] = of.bincount(minlength=count).tolist()
        """How many samples each group has."""

    def sort(self, batch: Tensor) -> Tensor:
        """A copy of `batch`, which may be on any device, one group after the other."""
        return batch.index_select(0, self._order.to(batch.device))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The parts of a sorted batch, one after the other, back in the first order."""
        whole = torch.cat(tuple(parts))
        return whole.index_select(0, self._back.to(whole.device))
