"""From stored samples to batches on a device: the step that every loader shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from orchestrator.config.base import Part
from orchestrator.data.augment import Pipeline
from orchestrator.data.types import Batch, DataInfo
from orchestrator.errors import DataError
from orchestrator.seeding import AUGMENT, derive


class BatchMaker:
    """Turns uint8 samples into normalised batches, augmented ones for training.

    Texts are numbers already and stay as they are.

    Args:
        parts: the sections of `data.augment`; of text there are none.
        seed: the run's.
        device: where batches go; augmentation is computed there.
    """

    def __init__(
        self, parts: Sequence[Part], info: DataInfo, seed: int, device: torch.device
    ) -> None:
        if info.tokenizer is not None and parts:
            raise DataError("data.augment changes images, but data.source gives text; remove it")
        self._pipeline = Pipeline(parts, info) if info.tokenizer is None else None
        self._seed, self._device = seed, device

    def train(self, samples: Batch, epoch: int, index: int, number: int) -> Batch:
        """Augments one micro-batch as (seed, epoch, global batch, number) say, on any rank.

        Args:
            samples: what `stored` gives.
        """
        samples = samples.to(self._device)
        if self._pipeline is None:
            return samples
        draws = torch.Generator().manual_seed(derive(self._seed, AUGMENT, epoch, index, number))
        images, targets = self._pipeline.apply(channels_first(samples), samples.targets, draws)
        return Batch(samples.ids, {**samples.inputs, "image": images}, targets)

    def evaluate(self, samples: Batch) -> Batch:
        """Normalises what `stored` gives, and nothing else."""
        samples = samples.to(self._device)
        if self._pipeline is None:
            return samples
        images = self._pipeline.normalize(channels_first(samples))
        return Batch(samples.ids, {**samples.inputs, "image": images}, samples.targets)


def stored(
    ids: np.ndarray, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
) -> Batch:
    """A batch of samples as they are stored, on the CPU: `image` is uint8[B, H, W, C]."""
    return Batch(
        torch.from_numpy(ids),
        {name: torch.from_numpy(array) for name, array in inputs.items()},
        {name: torch.from_numpy(array) for name, array in targets.items()},
    )


def channels_first(samples: Batch) -> Tensor:
    """The stored images as uint8[B, C, H, W]."""
    return samples.inputs["image"].permute(0, 3, 1, 2).contiguous()
