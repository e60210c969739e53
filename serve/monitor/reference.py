"""A version's fp32 network beside the one that answers, for what needs gradients; and its past."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from orchestrator.analysis.grad_cam import NoMapError
from orchestrator.run_folder.statistics import Statistics
from orchestrator.serve.backend import Heat, NoAnswerError, Pixels
from orchestrator.serve.images import to_unit
from orchestrator.serve.monitor.past import past_of
from orchestrator.serve.predictor import Predictor, TextPredictor, load_any

_WAITING = 4
"""Explanations that wait at most: one takes as long as some forward passes."""


class Reference:
    """The model of a folder, as it was trained.

    Loaded when it is first asked for, and computed in a thread of its own, one image at a time, so
    that requests go on beside it.

    Args:
        root: a run or ensemble folder.
        device: where it computes.
    """

    def __init__(self, root: Path, device: torch.device | str = "cpu") -> None:
        self._root, self._device = root, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="orch-explain")
        self._model: Predictor | TextPredictor | None = None
        self._waiting = 0

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """See `Backend.explain`."""
        if self._waiting >= _WAITING:
            raise NoAnswerError(f"{self._waiting} explanations wait already; try again", status=429)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._explain, pixels, label)
        finally:
            self._waiting -= 1

    def _explain(self, pixels: Pixels, label: int) -> Heat:
        if self._model is None:
            self._model = load_any(self._root, device=self._device)
        if isinstance(self._model, TextPredictor) or self._model.card.reads == "text":
            raise NoAnswerError("only answers about images are explained", status=400)
        try:
            heat: Heat = self._model.explain(torch.from_numpy(to_unit(pixels)), label).numpy()
        except NoMapError as error:
            raise NoAnswerError(str(error), status=400) from None
        except Exception as error:
            raise NoAnswerError(f"the answer can't be explained ({type(error).__name__})") from None
        return heat

    async def statistics(self) -> Statistics | None:
        """See `Backend.statistics`."""
        return await asyncio.to_thread(past_of, self._root)
