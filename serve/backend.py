"""The seam between HTTP routes and whatever computes: Ray replicas, or this very process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.serve.cards import ModelCard
from orchestrator.serve.monitor.trace import Trace

if TYPE_CHECKING:
    from orchestrator.run_folder.statistics import Statistics

Pixels = npt.NDArray[np.generic]
Inputs = Pixels | Sequence[str]
"""uint8[B, C, H, W] in 0..255, float32[B, C, H, W] in 0..1, or B texts."""
Probabilities = npt.NDArray[np.float32]
Heat = npt.NDArray[np.float32]
"""float32[H, W] in 0..1: how much each place of an image speaks for a label."""


@dataclass(frozen=True)
class Ask:
    """What a request wants besides its inputs.

    Attributes:
        version: of the model; empty leaves it to the model's traffic rule.
        sticky: requests with the same value get the same version; empty for any.
        deadline: when the answer is due, on `time.monotonic`'s clock; None for whenever.
        trace: the request's way so far; None for one that did not come over HTTP.
    """

    version: str = ""
    sticky: str = ""
    deadline: float | None = None
    trace: Trace | None = None


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
        members: networks that the version has.
    """

    computed: Computed
    version: str
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch: int = 1
    members: int = 1


@dataclass(frozen=True)
class Seen:
    """One request to one version, once it is over; for those who watch.

    Attributes:
        answer: None if there was none, for whatever reason.
        failed: whether the model, not the client, was at fault.
        asked: when the request reached its queue, on `time.monotonic`'s clock.
        shadow: whether nobody waited for it.
    """

    name: str
    version: str
    inputs: Inputs
    answer: Answer | None
    failed: bool
    asked: float
    shadow: bool = False
    trace: Trace | None = None


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

    def shares(self, name: str) -> dict[str, float]:
        """Each version's share of a model's requests."""
        ...

    def waiting(self, name: str) -> dict[str, int]:
        """Samples that wait for each version of a model."""
        ...

    def watch(self, see: Callable[[Seen], None]) -> None:
        """Calls `see` on the event loop after each request to a version; it must not take long."""
        ...

    async def explain(self, name: str, version: str, pixels: Pixels, label: int) -> Heat:
        """Where an image speaks for a label (Grad-CAM); beside the queue, one at a time.

        Args:
            pixels: uint8[C, H, W] in 0..255, or float32 in 0..1.
            label: a class number.

        Raises:
            NoAnswerError: if the model has no map of places (400), too many ask (429), or the
                version is gone (404) or can't answer now (503).
        """
        ...

    async def statistics(self, name: str, version: str) -> Statistics | None:
        """What the version saw and answered when it was trained; None if that was not kept."""
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


class OverdueError(NoAnswerError):
    """The time ran out that the request itself set: nobody's failure but the clock's."""

    def __init__(self, message: str, status: int = 504) -> None:
        super().__init__(message, status)


class ReplicaLostError(Exception):
    """The replica that computed a batch is gone; what it had can be asked again."""
