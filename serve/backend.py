"""The seam between HTTP routes and whatever computes: Ray replicas, or this very process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.serve.cards import ModelCard

Pixels = npt.NDArray[np.generic]
Probabilities = npt.NDArray[np.float32]


class Backend(Protocol):
    """Answers requests for named models."""

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """What there is, by name."""
        ...

    async def predict(self, name: str, pixels: Pixels) -> Probabilities:
        """Class probabilities float32[B, classes].

        Args:
            name: a key of `cards`.
            pixels: uint8[B, C, H, W] in 0..255 or float32[B, C, H, W] in 0..1.

        Raises:
            NoAnswerError: if the model gave no finite numbers, or nothing can compute now.
        """
        ...

    async def ready(self, name: str) -> bool:
        """Whether the model would answer now."""
        ...


class NoAnswerError(Exception):
    """A sound request that got no answer.

    Args:
        message: why.
        status: 500 if the model can't, 503 if another attempt may succeed.
    """

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.message, self.status = message, status

    def __reduce__(self) -> tuple[type[NoAnswerError], tuple[str, int]]:
        # Crosses process borders between a replica and the gateway.
        return type(self), (self.message, self.status)
