"""What every executor is, and the plainest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.serve.backend import Computed, Inputs
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.predictor import Predictor, TextPredictor, answers_to


@dataclass(frozen=True)
class ComputedRows(Computed):
    """A batch whose samples may have been answered by different members.

    Attributes:
        members_of: int64[B], by sample; `members` is the smallest.
    """

    members_of: npt.NDArray[np.int64] | None = None


class Executor(Protocol):
    """A model that answers batches in one process."""

    @property
    def card(self) -> ModelCard:
        """What it answers for."""
        ...

    @property
    def max_batch(self) -> int:
        """Samples beyond which a larger batch brings nothing."""
        ...

    @property
    def kind(self) -> str:
        """What runs the network, in words, such as "stacked, fp32"."""
        ...

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        """Class probabilities of a batch.

        Args:
            inputs: as the card says; never empty.
            seconds: an ensemble that is not done by then answers with those members that are, if
                they are enough; None waits for all.

        Raises:
            NoAnswerError: if too few members were done by then (504).
        """
        ...


class PlainExecutor:
    """The predictor that `orch predict` uses, as it is.

    Args:
        predictor: computes in fp32, one member after another.
        max_batch: see `Executor.max_batch`.
    """

    kind = "torch, fp32"

    def __init__(self, predictor: Predictor | TextPredictor, max_batch: int) -> None:
        self._predictor, self.max_batch = predictor, max_batch
        self.card = predictor.card

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        """See `Executor.run`."""
        return Computed(answers_to(self._predictor, inputs).numpy(), self.card.members)


def free_memory() -> None:
    """Gives back what torch keeps of a GPU's memory without using it."""
    torch.cuda.empty_cache()  # does nothing where no GPU was used
