"""The seam between HTTP routes and whatever computes: Ray replicas, or this very process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.serve.cards import ModelCard

Pixels = npt.NDArray[np.generic]
Inputs = Pixels | Sequence[str]
"""uint8[B, C, H, W] in 0..255, float32[B, C, H, W] in 0..1, or B texts."""
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ask:
    """What a request wants besides its inputs.

    Attributes:
        version: of the model; empty leaves it to the model's traffic rule.
        sticky: requests with the same value get the same version; empty for any.
        deadline: when the answer is due, on `time.monotonic`'s clock; None for whenever.
    """

    version: str = ""
    sticky: str = ""
    deadline: float | None = None


@dataclass(frozen=True)
class Computed:
    """What a replica made of one request's inputs.

    Attributes:
        probabilities: float32[B, classes].
        members: networks whose answer is in it; fewer than the model has if time was short, or
            if those that were asked agreed.
        late: whether members are missing because the deadline came first.
    """

    probabilities: Probabilities
    members: int = 1
    late: bool = False


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        version: which version of the model answered.
        queue_seconds: waiting for a replica and a batch.
        compute_seconds: until the batch came back, transport included.
        batch: samples in the forward pass that it was part of.
    """

    computed: Computed
    version: str
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch: int = 1


class Backend(Protocol):
    """Answers requests for named models."""

    @property
    def cards(self) -> Mapping[str, Mapping[str, ModelCard]]:
        """What there is: version → card, by the model's name; the version added last is last."""
        ...

    async def predict(self, name: str, inputs: Inputs, ask: Ask) -> Answer:
        """Class probabilities.

        Args:
            name: a key of `cards`.
            inputs: as the card of the version says.

        Raises:
            NoAnswerError: if the model gave no finite numbers, nothing can compute now, too many
                wait, or the deadline passed.
        """
        ...

    async def ready(self, name: str, version: str = "") -> bool:
        """Whether the model would answer now: this version, or all that get traffic."""
        ...


class NoAnswerError(Exception):
    """A sound request that got no answer.

    Args:
        message: why.
        status: 500 if the model can't, 429 if too many ask, 503 if another attempt may succeed,
            504 if time ran out.
    """

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.message, self.status = message, status

    def __reduce__(self) -> tuple[type[NoAnswerError], tuple[str, int]]:
        # Crosses process borders between a replica and the gateway.
        return type(self), (self.message, self.status)


class ReplicaLostError(Exception):
    """The replica that computed a batch is gone; what it had can be asked again."""
