"""How a gateway follows the operator's table, and reports to it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.config.base import build, find
from orchestrator.serve.control.control import Control
from orchestrator.serve.control.table import ModelEntry, Table, VersionEntry
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.pool import Pool, VersionPool
from orchestrator.serve.traffic.rule import Outcome, Rule

_REPORT_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_MOST_OUTCOMES = 10_000
"""Kept between two reports at most, for each model; the rest is not reported."""
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Link:
    """Keeps a dispatcher at the newest table, and the operator informed.

    Args:
        control: the operator.
        dispatcher: what obeys.
        connect: makes the pool of a version that was not there before.
    """

    def __init__(
        self,
        control: Control,
        dispatcher: Dispatcher,
        connect: Callable[[VersionEntry], VersionPool],
    ) -> None:
        self._control, self._dispatcher, self._connect = control, dispatcher, connect
        self._id = uuid.uuid4().hex
        self._pools: dict[VersionEntry, VersionPool] = {}
        self._outcomes: dict[str, list[Outcome]] = {}
        self._rewards: dict[str, list[tuple[str, float]]] = {}
        self.table = Table()
        """What is obeyed now."""

    def observe(self, name: str, outcome: Outcome) -> None:
        """Notes how a request went, for the next report; where nobody learns from it, nothing."""
        entry = self.table.models.get(name)
        if entry is None or not entry.learns:
            return
        kept = self._outcomes.setdefault(name, [])
        if len(kept) < _MOST_OUTCOMES:
            kept.append(outcome)

    def reward(self, name: str, version: str, reward: float) -> None:
        """Notes what a client says that an answer was worth, 0..1, for the next report."""
        kept = self._rewards.setdefault(name, [])
        if len(kept) < _MOST_OUTCOMES:
            kept.append((version, reward))

    async def run(self) -> None:
        """Follows and reports until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._report())

    async def follow_once(self) -> None:
        """Waits for a table above the one that is obeyed, for a few seconds, and obeys it."""
        table = await self._control.table(self._id, self.table.generation)
        if table.generation > self.table.generation:
            await self._obey(table)

    async def _follow(self) -> None:
        while True:
            try:
                await self.follow_once()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # The operator restarts; what is obeyed now goes on being served.
                _LOG.debug("the operator can't be asked: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _obey(self, table: Table) -> None:
        pools: dict[VersionEntry, VersionPool] = {}
        models: dict[str, tuple[Rule, dict[str, Pool]]] = {}
        for name, entry in table.models.items():
            for one in entry.versions.values():
                pools[one] = self._pools.get(one) or self._connect(one)
                pools[one].meet(table.places.get(one.spec.key, ()))
            versions: dict[str, Pool]
            versions = {version: pools[one] for version, one in entry.versions.items()}
            models[name] = (_rule(name, entry), versions)
        removed = self._dispatcher.install(models)
        gone = [pool for entry, pool in self._pools.items() if entry not in pools]
        self._pools, self.table = pools, table
        # The next question tells the operator that nothing is asked of removed versions any more.
        while not all(queue.idle for queue in removed):
            await asyncio.sleep(0.02)
        for pool in gone:
            await pool.close()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            await self.report_once()

    async def report_once(self) -> None:
        """Tells the operator what was noted; keeps it for the next time if it can't be told."""
        outcomes, self._outcomes = self._outcomes, {}
        rewards, self._rewards = self._rewards, {}
        if not outcomes and not rewards:
            return
        try:
            await self._control.report(self._id, outcomes, rewards)
        except Exception as error:
            _LOG.debug("the operator can't be told: %s", error)
            _put_back(self._outcomes, outcomes)
            _put_back(self._rewards, rewards)


def _put_back(now: dict[str, list[T]], before: dict[str, list[T]]) -> None:
    """Lays what could not be told before what was noted since."""
    for name, items in before.items():
        now[name] = [*items, *now.get(name, ())][:_MOST_OUTCOMES]


def _rule(name: str, entry: ModelEntry) -> Rule:
    section: dict[str, Any] = dict(entry.rule)
    config = find("traffic", section["type"]).config.model_validate(section)
    rule: Rule = build("traffic", config, state=entry.state, name=name)
    return rule
