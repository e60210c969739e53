"""How a gateway follows the operator's table, and reports to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from typing import Any

from orchestrator.config.base import build, find
from orchestrator.serve.control.control import Control
from orchestrator.serve.control.table import ModelEntry, Table, VersionEntry
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.pool import Pool
from orchestrator.serve.traffic.rule import Outcome, Rule

_REPORT_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_MOST_OUTCOMES = 10_000
"""Kept between two reports at most, for each model; the rest is not reported."""
_LOG = logging.getLogger(__name__)


class Link:
    """Keeps a dispatcher at the newest table, and the operator informed.

    Args:
        control: the operator.
        dispatcher: what obeys.
        connect: makes the pool of a version that was not there before.
    """

    def __init__(
        self, control: Control, dispatcher: Dispatcher, connect: Callable[[VersionEntry], Pool]
    ) -> None:
        self._control, self._dispatcher, self._connect = control, dispatcher, connect
        self._id = uuid.uuid4().hex
        self._pools: dict[VersionEntry, Pool] = {}
        self._outcomes: dict[str, list[Outcome]] = {}
        self._rewards: dict[str, list[tuple[str, float]]] = {}
        self.table = Table()
        """What is obeyed now."""

    def observe(self, name: str, outcome: Outcome) -> None:
        """Notes how a request went, for the next report."""
        kept = self._outcomes.setdefault(name, [])
        if len(kept) < _MOST_OUTCOMES:
            kept.append(outcome)

    def reward(self, name: str, version: str, reward: float) -> None:
        """Notes what a client says that an answer was worth, 0..1, for the next report."""
        self._rewards.setdefault(name, []).append((version, reward))

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
        pools: dict[VersionEntry, Pool] = {}
        models: dict[str, tuple[Rule, dict[str, Pool]]] = {}
        for name, entry in table.models.items():
            for one in entry.versions.values():
                pools[one] = self._pools.get(one) or self._connect(one)
            versions = {version: pools[one] for version, one in entry.versions.items()}
            models[name] = (_rule(entry), versions)
        removed = self._dispatcher.install(models)
        self._pools, self.table = pools, table
        # The next question tells the operator that nothing is asked of removed versions any more.
        while not all(queue.idle for queue in removed):
            await asyncio.sleep(0.02)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            outcomes, self._outcomes = self._outcomes, {}
            rewards, self._rewards = self._rewards, {}
            if outcomes or rewards:
                with contextlib.suppress(Exception):
                    await self._control.report(self._id, outcomes, rewards)


def _rule(entry: ModelEntry) -> Rule:
    section: dict[str, Any] = dict(entry.rule)
    config = find("traffic", section["type"]).config.model_validate(section)
    rule: Rule = build("traffic", config, state=entry.state)
    return rule
