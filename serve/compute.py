"""Answering batches in this process: what a replica does, and the whole server in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from orchestrator.config.serving import Latest, ServeConfig
from orchestrator.errors import OrchError
from orchestrator.serve.backend import Computed, Inputs, NoAnswerError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import Started, VersionEntry, VersionSpec
from orchestrator.serve.executors.base import Executor
from orchestrator.serve.executors.load import load_executor
from orchestrator.serve.images import to_unit
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.pool import Pool
from orchestrator.serve.traffic.rule import Rule
from orchestrator.serve.traffic.rules import LatestRule


def answer_together(
    executor: Executor, requests: Sequence[Inputs], seconds: float | None = None
) -> list[Computed | NoAnswerError]:
    """Answers several requests by one forward pass; a bad one fails alone.

    Args:
        executor: the model.
        requests: inputs of each request; the number of samples may differ.
        seconds: see `Executor.run`.
    """
    try:
        together = executor.run(_joined(requests), seconds)
    except Exception as error:
        if len(requests) > 1:
            half = len(requests) // 2
            parts = requests[:half], requests[half:]
            return [one for part in parts for one in answer_together(executor, part, seconds)]
        return [NoAnswerError(f"the model failed on this input ({_what(error)})")]
    borders = np.cumsum([len(request) for request in requests])[:-1]
    return [
        Computed(part, together.members, together.late)
        if np.isfinite(part).all()
        else NoAnswerError("the model gave no finite numbers for this input")
        for part in np.split(together.probabilities, borders)
    ]


def _joined(requests: Sequence[Inputs]) -> Inputs:
    if isinstance(requests[0], np.ndarray):
        pixels = [one for one in requests if isinstance(one, np.ndarray)]
        if all(one.dtype == pixels[0].dtype for one in pixels):
            return np.concatenate(pixels)
        return np.concatenate([to_unit(one) for one in pixels])
    return [str(text) for request in requests for text in request]


def _what(error: Exception) -> str:
    """The kind of failure; its message may hold paths or numbers that are not the client's."""
    full = isinstance(error, MemoryError) or "memory" in str(error).lower()
    return "out of memory" if full else type(error).__name__


class LocalPool:
    """One executor in this process, computing in a thread beside the event loop; see `Pool`."""

    capacity = 2

    def __init__(self, executor: Executor) -> None:
        self._executor, self._thread = executor, ThreadPoolExecutor(1)

    @property
    def card(self) -> ModelCard:
        """See `Pool.card`."""
        return self._executor.card

    @property
    def max_batch(self) -> int:
        """See `Pool.max_batch`."""
        return self._executor.max_batch

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """See `Pool.compute`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, answer_together, self._executor, requests, seconds
        )

    async def ready(self) -> bool:
        """Whether the model is loaded: it is."""
        return True


class LocalFleet:
    """Versions whose executors live in this process; see `Fleet`."""

    def __init__(self, config: ServeConfig | None = None) -> None:
        self._config = config or ServeConfig()
        self._executors: dict[VersionSpec, Executor] = {}

    async def start(self, spec: VersionSpec) -> Started:
        """Loads the version; see `Fleet.start`."""
        try:
            executor = await asyncio.to_thread(
                load_executor, Path(spec.root), spec.name, spec.version, self._config
            )
        except OrchError as error:
            raise LoadError(f"{spec.key} can't be loaded: {error}") from None
        self._executors[spec] = executor
        return Started(executor.card, executor.max_batch, executor.kind)

    async def stop(self, spec: VersionSpec) -> None:
        """Forgets the version."""
        self._executors.pop(spec, None)

    def connect(self, entry: VersionEntry) -> LocalPool:
        """The pool of a version that was started."""
        return LocalPool(self._executors[entry.spec])


def local_backend(executors: Sequence[Executor], limits: QueueLimits | None = None) -> Dispatcher:
    """A backend that computes in this process, and whose models never change.

    Args:
        executors: versions of models; of one model, the version added last is the last.
    """
    dispatcher = Dispatcher(limits or QueueLimits())
    models: dict[str, tuple[Rule, dict[str, Pool]]] = {}
    for executor in executors:
        _, versions = models.setdefault(executor.card.name, (LatestRule(Latest()), {}))
        versions[executor.card.version] = LocalPool(executor)
    dispatcher.install(models)
    return dispatcher
