"""What travels between sources, loaders, tasks and engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.text.tokenizer import Lexicon, Tokenizer

SPLITS = ("train", "val", "select", "test")


@dataclass(frozen=True)
class Batch:
    """Samples that go through the model together.

    Attributes:
        ids: int64[B], each sample's place in its source.
        inputs: arguments of the model's `forward`, by name.
        targets: what the task compares with, by name; `label` is int64[B] or float[B, classes],
            or, where each token has an answer, int64[B, T] with `PAD` for none.
    """

    ids: Tensor
    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device (copied asynchronously from pinned memory)."""
        if self.ids.device == device:
            return self
        move = {"device": device, "non_blocking": True}
        return Batch(
            self.ids.to(**move),  # type: ignore[call-overload]
            {name: tensor.to(**move) for name, tensor in self.inputs.items()},  # type: ignore[call-overload]
            {name: tensor.to(**move) for name, tensor in self.targets.items()},  # type: ignore[call-overload]
        )


@dataclass(frozen=True)
class GlobalBatch:
    """One optimizer step's samples: this rank's numbered micro-batches of a global batch.

    Attributes:
        epoch: from 0.
        index: place in the epoch, from 0.
        samples: samples of the global batch over all ranks; what losses are weighted by.
        micro_batches: this rank's share. An empty one stands for a global batch with fewer
            samples than micro-batches.
        numbers: each micro-batch's number within the global batch. Random draws are seeded by
            it, never by the rank, so that the result does not depend on who computes it.
    """

    epoch: int
    index: int
    samples: int
    micro_batches: tuple[Batch, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Samples:
    """One split in memory: arrays whose first axis is the sample.

    Attributes:
        inputs: `image` is uint8[N, H, W, C]. Of text, `tokens` is int32[N, T], and so is
            `target_tokens`, what a decoder is given, where a text answers a text.
        targets: `label` is int64[N], or int32[N, T], the next token at each place.

    Arrays of int32 hold the numbers of the source's lexicon.
    """

    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))


@dataclass(frozen=True)
class SourceData:
    """What a source gives: its training samples, its official test split, its label names.

    Texts come with a lexicon, and without label names where tokens are the answers.
    """

    train: Samples
    test: Samples | None
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a user should know, such as files that were skipped."""
    lexicon: Lexicon | None = None


@dataclass(frozen=True)
class DataInfo:
    """What a data set looks like, once it is split.

    Attributes:
        shape: (C, H, W) of one image, (T,) of one text, (S, T) of a text and its target text.
        label_names: none where the answers are tokens.
        mean, std: per channel, of the train split, in units of pixels scaled to 0..1; of text none.
        sizes: samples in each split; `test` is absent where the source has none.
        digest: sha256 of the source's samples.
        split_digest: sha256 of which sample went where; ensembles compare it.
        tokenizer: of text: what the train split knows.
    """

    shape: tuple[int, ...]
    label_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: Mapping[str, int]
    digest: str
    split_digest: str
    notes: tuple[str, ...] = field(default=())
    tokenizer: Tokenizer | None = None

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.label_names)

    @property
    def vocabulary(self) -> int | None:
        """How many tokens there are; None for images."""
        return None if self.tokenizer is None else len(self.tokenizer)

    @property
    def answers(self) -> str:
        """What a sample's answer is: a `label`, each `next token`, or a `text`."""
        if self.label_names:
            return "label"
        return "next token" if len(self.shape) == 1 else "text"


class Loader(Protocol):
    """Brings a rank its batches. Every implementation follows the same epoch plan."""

    info: DataInfo

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        ...

    def train(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """This rank's share of every global batch of an epoch, from `start` on, augmented."""
        ...

    def evaluate(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        """This rank's share of a split in the source's order: each sample once, unaugmented.

        A rank whose share is empty gets one batch of no samples.

        Raises:
            DataError: if the split is unknown or has no samples.
        """
        ...

    def close(self) -> None:
        """Ends background work."""
        ...
