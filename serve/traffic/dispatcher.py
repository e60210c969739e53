"""The backend of the HTTP routes: a rule and a queue for each model's versions."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from orchestrator.serve.backend import (
    Answer,
    Ask,
    Heat,
    Inputs,
    NoAnswerError,
    OverdueError,
    Pixels,
    Seen,
)
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.traffic.batcher import Batcher, QueueLimits
from orchestrator.serve.traffic.pool import OneBatch, Pool
from orchestrator.serve.traffic.rule import Outcome, Rule

if TYPE_CHECKING:
    from orchestrator.run_folder.statistics import Statistics

_READY_SECONDS = 2
_COPIED_BATCHES = 4
"""Copies that wait for a version fill this many of its batches at most; more are not made."""


@dataclass
class _Model:
    rule: Rule
    queues: dict[str, Batcher] = field(default_factory=dict)


class Dispatcher:
    """Chooses a version for each request, and queues it there; see `Backend`.

    Args:
        limits: of each version's queue.
        observe: told how each request went; it must not take long.
    """

    def __init__(
        self, limits: QueueLimits, observe: Callable[[str, Outcome], None] | None = None
    ) -> None:
        self._limits = limits
        self._observe = observe or (lambda name, outcome: None)
        self._models: dict[str, _Model] = {}
        self._cards: dict[str, dict[str, ModelCard]] = {}
        self._shadows: set[asyncio.Task[None]] = set()
        self._copies: WeakKeyDictionary[Batcher, Batcher] = WeakKeyDictionary()
        self._watchers: list[Callable[[Seen], None]] = []

    @property
    def cards(self) -> Mapping[str, Mapping[str, ModelCard]]:
        """See `Backend.cards`."""
        return self._cards

    def shares(self, name: str) -> dict[str, float]:
        """Each version's share of a model's requests."""
        model = self._models[name]
        return model.rule.shares(list(model.queues))

    def waiting(self, name: str) -> dict[str, int]:
        """Samples that wait for each version of a model."""
        return {version: one.waiting for version, one in self._models[name].queues.items()}

    def install(self, models: Mapping[str, tuple[Rule, Mapping[str, Pool]]]) -> list[Batcher]:
        """Makes these the models, at once; requests under way end where they are.

        Args:
            models: rule and ready pools by version, the one added last at the end; a pool that is
                there already (the same object) keeps its queue.

        Returns:
            The queues that get no more requests.
        """
        installed: dict[str, _Model] = {}
        for name, (rule, pools) in models.items():
            had = self._models[name].queues if name in self._models else {}
            kept = {queue.pool: queue for queue in had.values()}
            queues = {v: kept.get(pool) or Batcher(pool, self._limits) for v, pool in pools.items()}
            installed[name] = _Model(rule, queues)
        before = [queue for model in self._models.values() for queue in model.queues.values()]
        self._models = installed
        self._cards = {
            name: {version: queue.pool.card for version, queue in model.queues.items()}
            for name, model in installed.items()
        }
        now = {queue for model in installed.values() for queue in model.queues.values()}
        return [queue for queue in before if queue not in now]

    async def predict(self, name: str, inputs: Inputs, ask: Ask) -> Answer:
        """See `Backend.predict`."""
        model = self._models.get(name)
        if model is None or not model.queues:
            raise NoAnswerError(f"model {name!r} has no version that answers now", status=503)
        versions = list(model.queues)
        chosen = ask.version or model.rule.choose(ask.sticky, versions)
        if chosen not in model.queues:
            raise NoAnswerError(f"version {chosen!r} of {name!r} was removed", status=404)
        if not ask.version:
            for version in model.rule.shadows(chosen, versions):
                self._copy(name, model.queues[version], inputs)
        return await self._asked(name, model.queues[chosen], inputs, ask)

    async def _asked(
        self,
        name: str,
        queue: Batcher,
        inputs: Inputs,
        ask: Ask,
        shadow: bool = False,
    ) -> Answer:
        start, failed, judged, overdue = time.monotonic(), True, not ask.version, False
        version = queue.pool.card.version
        answer: Answer | None = None
        try:
            answer = await queue.ask(inputs, ask.deadline)
            failed = False
        except asyncio.CancelledError:
            failed = False
            raise
        except NoAnswerError as error:
            full = error.status == 429
            overdue = isinstance(error, OverdueError)
            failed = not full and not overdue
            judged = judged and not full  # how long it took says nothing
            raise
        finally:
            # What a client asks a version for by name is not the traffic that it is judged by.
            if judged:
                seconds = math.inf if overdue else time.monotonic() - start
                self._observe(name, Outcome(version, failed, seconds, shadow))
            for see in self._watchers:
                see(Seen(name, version, inputs, answer, failed, start, shadow, ask.trace))
        return answer

    def _copy(self, name: str, queue: Batcher, inputs: Inputs) -> None:
        """Asks a version too, unless that would keep anybody waiting; nobody waits for it."""
        copies = self._copies.get(queue)
        if copies is None:
            copies = self._copies[queue] = Batcher(OneBatch(queue.pool), self._limits)
        most = min(_COPIED_BATCHES * queue.pool.max_batch, self._limits.waiting)
        if queue.waiting or copies.waiting + len(inputs) > most:
            return

        async def copied() -> None:
            with contextlib.suppress(NoAnswerError):
                await self._asked(name, copies, inputs, Ask(), shadow=True)

        task = asyncio.ensure_future(copied())
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    def watch(self, see: Callable[[Seen], None]) -> None:
        """See `Backend.watch`."""
        self._watchers.append(see)

    async def explain(self, name: str, version: str, pixels: Pixels, label: int) -> Heat:
        """See `Backend.explain`."""
        return await self._pool(name, version).explain(pixels, label)

    async def statistics(self, name: str, version: str) -> Statistics | None:
        """See `Backend.statistics`."""
        return await self._pool(name, version).statistics()

    def _pool(self, name: str, version: str) -> Pool:
        model = self._models.get(name)
        if model is None or version not in model.queues:
            raise NoAnswerError(f"version {version!r} of {name!r} was removed", status=404)
        return model.queues[version].pool

    async def ready(self, name: str, version: str = "") -> bool:
        """See `Backend.ready`."""
        model = self._models.get(name)
        if model is None or not model.queues:
            return False
        asked = [version] if version else [v for v, s in self.shares(name).items() if s > 0]
        queues = [model.queues[one] for one in asked if one in model.queues]
        if not queues:
            return False
        try:
            async with asyncio.timeout(_READY_SECONDS):
                return all(await asyncio.gather(*(queue.pool.ready() for queue in queues)))
        except TimeoutError:
            return False
