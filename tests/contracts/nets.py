"""The small networks that engines are put through their cases with, and their batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data.plan import micro_batches, share
from orchestrator.data.text.tokenizer import PAD
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.host import Worker
from orchestrator.models.layers.auxiliary import advance
from orchestrator.models.layers.penalties import PriorPenalty
from orchestrator.models.stages import Stage, run_stages
from orchestrator.tasks.base import Outputs

CLASSES, SIDE, LR, CLIP = 5, 8, 0.1, 0.05
SAMPLES = 4
VOCABULARY, LENGTH, REAL = 11, 9, torch.tensor([0, 0, 5])
SIZES = (16, 16, 10, 3, 16)
"""Samples of each global batch: even, uneven, and fewer than micro-batches (one is empty)."""


class Net(nn.Module):
    """Convolutions, BatchNorm, dropout and a head: what engines treat differently."""

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.second = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return run_stages(self.stages(), x_NCHW)

    def stages(self) -> list[Stage]:
        return [
            Stage("first", self.first, (self.first,)),
            Stage("norm", lambda x: self.drop(self.norm(x).relu()), (self.norm,)),
            Stage("second", lambda x: self.second(x).relu(), (self.second,)),
            Stage("head", lambda x: self.head(x.mean((2, 3))), (self.head,)),
        ]


def batches(
    worker: Worker, *, count: int = 4, sizes: tuple[int, ...] = SIZES
) -> Iterator[GlobalBatch]:
    """This rank's share of a fixed sequence of global batches, `count` micro-batches each."""
    random = torch.Generator().manual_seed(7)
    for index, size in enumerate(sizes):
        image = torch.randn(size, 3, SIDE, SIDE, generator=random)
        label = torch.randint(CLASSES, (size,), generator=random)
        cuts = [torch.from_numpy(ids) for ids in micro_batches(np.arange(size), count)]
        mine = share(count, worker.rank, worker.world_size)
        micro = tuple(
            Batch(cuts[n], {"image": image[cuts[n]]}, {"label": label[cuts[n]]}) for n in mine
        )
        yield GlobalBatch(0, index, size, micro, tuple(mine))


class TokenNet(nn.Module):
    """Logits for each token, from the token alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.head = nn.Linear(12, VOCABULARY)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return run_stages(self.stages(), tokens_BT)

    def stages(self) -> list[Stage]:
        return [Stage(name, m, (m,)) for name, m in self.named_children()]


def texts(worker: Worker, *, count: int = 4) -> Iterator[GlobalBatch]:
    """This rank's share of texts that are ever longer, so that cuts have unlike real tokens.

    The first text, and in the small batch all but the last, have no real token at all.
    """
    random = torch.Generator().manual_seed(9)
    for index, size in enumerate((16, 3)):
        tokens, label = (
            torch.randint(1, VOCABULARY, (size, LENGTH), generator=random) for _ in range(2)
        )
        real = (torch.arange(size) * (LENGTH - 1) / (size - 1)).int() if size > 3 else REAL
        label[torch.arange(LENGTH) >= real[:, None]] = PAD
        cuts = [torch.from_numpy(ids) for ids in micro_batches(np.arange(size), count)]
        mine = share(count, worker.rank, worker.world_size)
        micro = tuple(
            Batch(cuts[n], {"tokens": tokens[cuts[n]]}, {"label": label[cuts[n]]}) for n in mine
        )
        yield GlobalBatch(0, index, size, micro, tuple(mine))


class Ridge(PriorPenalty):
    """Adds half the squared norm of a layer's weight, by the number of training samples."""

    def forward(self, x_NI: Tensor, linear: nn.Linear) -> Tensor:
        self.keep(linear.weight.square().sum() / 2)
        return linear(x_NI)


class RidgeNet(nn.Module):
    """Two linear layers, the second of which has a penalty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3 * SIDE**2, 12)
        self.head = nn.Linear(12, CLASSES)
        self.ridge = Ridge()
        self.ridge.training_samples = SAMPLES

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return run_stages(self.stages(), x_NCHW)

    def stages(self) -> list[Stage]:
        return [
            Stage("first", lambda x: self.first(x.flatten(1)).relu(), (self.first,)),
            Stage("head", lambda x: self.ridge(x, self.head), (self.ridge, self.head)),
        ]


class AuxiliaryNet(nn.Module):
    """A convolution with a second head that speaks in training only, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(8 * (SIDE - 2) ** 2, CLASSES))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Outputs:
        return run_stages(self.stages(), x_NCHW)

    def stages(self) -> list[Stage]:
        def both(x_NCHW: Tensor) -> Outputs:
            return advance([self.first, self.norm], self.auxiliary, x_NCHW)

        def head(state: Outputs) -> Outputs:
            x, *logits = (state,) if isinstance(state, Tensor) else state
            answer: Tensor = self.head(x.relu().mean((2, 3)))
            return (answer, *logits) if logits else answer

        return [
            Stage("first", both, (self.first, self.norm, self.auxiliary)),
            Stage("head", head, (self.head,)),
        ]
