"""Answering requests with a predictor in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from orchestrator.serve.backend import NoAnswerError, Pixels, Probabilities
from orchestrator.serve.images import to_unit
from orchestrator.serve.predictor import Predictor


def answer_together(
    predictor: Predictor, requests: Sequence[Pixels]
) -> list[Probabilities | NoAnswerError]:
    """Answers several requests by one forward pass; a bad one fails alone.

    Args:
        predictor: the model.
        requests: pixels of each request; the number of samples may differ.
    """
    try:
        pixels = np.concatenate([to_unit(request) for request in requests])
        rows = predictor.predict(torch.from_numpy(pixels)).numpy()
    except Exception as error:
        if len(requests) > 1:
            return [answer_together(predictor, [request])[0] for request in requests]
        return [NoAnswerError(f"the model failed on this input ({type(error).__name__}: {error})")]
    borders = np.cumsum([len(request) for request in requests])[:-1]
    return [
        part
        if np.isfinite(part).all()
        else NoAnswerError("the model gave no finite numbers for this input")
        for part in np.split(rows, borders)
    ]


class LocalBackend:
    """Computes in this process, one request at a time and model."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self._predictors = {predictor.card.name: predictor for predictor in predictors}
        self.cards = {name: predictor.card for name, predictor in self._predictors.items()}
        self._thread = ThreadPoolExecutor(1)

    async def predict(self, name: str, pixels: Pixels) -> Probabilities:
        """Computes in a thread; see `Backend.predict`."""
        loop = asyncio.get_running_loop()
        (answer,) = await loop.run_in_executor(
            self._thread, answer_together, self._predictors[name], [pixels]
        )
        if isinstance(answer, NoAnswerError):
            raise answer
        return answer

    async def ready(self, name: str) -> bool:
        """Whether the model is loaded."""
        return name in self._predictors
