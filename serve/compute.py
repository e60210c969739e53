"""Answering batches in this process: what a replica does, and the whole server in tests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from orchestrator.config.serving import Latest, ServeConfig
from orchestrator.errors import OrchError
from orchestrator.run_folder.registry import check_files
from orchestrator.run_folder.statistics import Statistics
from orchestrator.serve.backend import Computed, Heat, Inputs, NoAnswerError, Pixels
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import Started, VersionEntry, VersionSpec
from orchestrator.serve.executors.base import ComputedRows, Executor, free_memory
from orchestrator.serve.executors.load import load_executor
from orchestrator.serve.images import to_unit
from orchestrator.serve.monitor.reference import Reference
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.pool import Pool
from orchestrator.serve.traffic.rule import Rule
from orchestrator.serve.traffic.rules import LatestRule
from orchestrator.serve.wire.place import Place

_LOG = logging.getLogger(__name__)


def answer_together(
    executor: Executor, requests: Sequence[Inputs], due: float | None = None
) -> list[Computed | NoAnswerError]:
    """Answers several requests by one forward pass; a bad one fails alone.

    Args:
        executor: the model.
        requests: inputs of each request; the number of samples may differ.
        due: when `Executor.run` has to be done, on `time.monotonic`'s clock; None for whenever.
    """
    left = None if due is None else due - time.monotonic()
    try:
        together = executor.run(_joined(requests), left)
    except NoAnswerError as error:  # time ran out: in halves it would not last longer
        return [error for _ in requests]
    except Exception as error:
        if full := _is_full(error):
            free_memory()
        if len(requests) > 1:
            half = len(requests) // 2
            parts = requests[:half], requests[half:]
            return [one for part in parts for one in answer_together(executor, part, due)]
        if full and len(requests[0]) > 1:
            return [_in_halves(executor, requests[0], due)]
        _LOG.error("%s failed on an input", executor.card.name, exc_info=error)
        return [NoAnswerError(f"the model failed on this input ({_what(error)})")]
    return _divided(together, requests)


def due_in(seconds: float | None) -> float | None:
    """When so many seconds are over: from now, not from when a thread is free for the batch."""
    return None if seconds is None else time.monotonic() + seconds


def _in_halves(executor: Executor, inputs: Inputs, due: float | None) -> Computed | NoAnswerError:
    """One request for which there was not enough memory at once."""
    half = len(inputs) // 2
    found = [answer_together(executor, [part], due)[0] for part in (inputs[:half], inputs[half:])]
    failed = next((one for one in found if isinstance(one, NoAnswerError)), None)
    if failed is not None:
        return failed
    done = [one for one in found if isinstance(one, Computed)]
    rows = np.concatenate([one.probabilities for one in done])
    return Computed(rows, min(one.members for one in done), any(one.late for one in done))


def _divided(together: Computed, requests: Sequence[Inputs]) -> list[Computed | NoAnswerError]:
    borders = np.cumsum([len(request) for request in requests])[:-1]
    members = together.members_of if isinstance(together, ComputedRows) else None
    if members is None:
        members = np.full(len(together.probabilities), together.members)
    return [
        Computed(part, int(asked.min()), together.late)
        if np.isfinite(part).all()
        else NoAnswerError("the model gave no finite numbers for this input")
        for part, asked in zip(
            np.split(together.probabilities, borders), np.split(members, borders), strict=True
        )
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
    return "out of memory" if _is_full(error) else type(error).__name__


def _is_full(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "memory" in str(error).lower()


class LocalPool:
    """One executor in this process, computing in a thread beside the event loop; see `Pool`.

    Args:
        executor: the model.
        reference: explains its answers; without one nothing is explained.
    """

    replicas = 1
    capacity = shares = 2

    def __init__(self, executor: Executor, reference: Reference | None = None) -> None:
        self._executor, self._thread = executor, ThreadPoolExecutor(1)
        self._reference = reference

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
        loop, due = asyncio.get_running_loop(), due_in(seconds)
        return await loop.run_in_executor(
            self._thread, answer_together, self._executor, requests, due
        )

    async def available(self) -> None:
        """See `Pool.available`: the replica is this process."""

    def meet(self, places: Sequence[Place]) -> None:
        """Nothing: the replica is this process."""

    async def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False)

    async def ready(self) -> bool:
        """Whether the model is loaded: it is."""
        return True

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """See `Pool.explain`."""
        if self._reference is None:
            raise NoAnswerError("the model's folder is not known, so nothing is explained", 400)
        return await self._reference.explain(pixels, label)

    async def statistics(self) -> Statistics | None:
        """See `Pool.statistics`."""
        return None if self._reference is None else await self._reference.statistics()


class LocalFleet:
    """Versions whose executors live in this process; see `Fleet`."""

    def __init__(self, config: ServeConfig | None = None) -> None:
        self._config = config or ServeConfig()
        self._executors: dict[VersionSpec, Executor] = {}

    async def start(self, spec: VersionSpec) -> Started:
        """Loads the version; see `Fleet.start`."""
        try:
            await asyncio.to_thread(check_files, Path(spec.root), spec.sha256, spec.key)
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

    async def keep_only(self, specs: Sequence[VersionSpec]) -> None:
        """Nothing: what an operator before this one had started ended with its process."""

    def connect(self, entry: VersionEntry) -> LocalPool:
        """The pool of a version that was started."""
        return LocalPool(self._executors[entry.spec], Reference(Path(entry.spec.root)))


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
