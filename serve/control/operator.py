"""Who changes what is served: starts versions, publishes the table, takes versions away.

Gateways go on with the table that they have while the operator is away, and a new operator goes on
from the state file of the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.files import write_json
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.judges import Judge, make_judge
from orchestrator.serve.control.table import (
    ModelEntry,
    Started,
    Table,
    VersionEntry,
    VersionSpec,
)
from orchestrator.serve.traffic.rule import Outcome

FORMAT = 1
_POLL_SECONDS = 5.0
_FOLLOW_SECONDS = 30.0
"""How long gateways may take to obey a table before the operator goes on without them."""


class Fleet(Protocol):
    """Starts and ends the replicas of versions."""

    async def start(self, spec: VersionSpec) -> Started:
        """Starts a version's replicas, or finds them running, and waits until they are ready.

        Raises:
            LoadError: if they do not become ready; none is left then.
        """
        ...

    async def stop(self, spec: VersionSpec) -> None:
        """Ends a version's replicas once they have answered what they have."""
        ...


class Operator:
    """The one place where the table changes; see `Control`. One event loop's.

    Args:
        fleet: starts and ends replicas.
        state: file that survives this process; None keeps nothing.
    """

    def __init__(self, fleet: Fleet, state: Path | None = None) -> None:
        self._fleet, self._state = fleet, state
        # Generations grow over restarts, so that a gateway never takes an old table for new.
        self._table = Table(generation=time.time_ns())
        self._changed = asyncio.Condition()
        self._lock = asyncio.Lock()
        self._obeys: dict[str, tuple[int, float]] = {}
        self._judges: dict[str, Judge] = {}

    # --- what gateways ask ------------------------------------------------------------------

    async def table(self, gateway: str, known: int) -> Table:
        """See `Control.table`."""
        self._obeys[gateway] = (known, time.monotonic())
        async with self._changed:
            self._changed.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._changed.wait_for(lambda: self._table.generation > known)
        return self._table

    async def report(
        self,
        gateway: str,
        outcomes: Mapping[str, Sequence[Outcome]],
        rewards: Mapping[str, Sequence[tuple[str, float]]],
    ) -> None:
        """See `Control.report`."""
        for name in {*outcomes, *rewards}:
            judge = self._judges.get(name)
            entry = self._table.models.get(name)
            if judge is None or entry is None:
                continue
            judge.observe(outcomes.get(name, ()), rewards.get(name, ()))
            state = judge.state()
            if state != entry.state:
                await self._publish({name: replace(entry, state=state)})

    # --- changes ----------------------------------------------------------------------------

    async def load(self, spec: VersionSpec) -> None:
        """See `Control.load`; a version of this name that is served already is replaced."""
        async with self._lock:
            entry = self._table.models.get(spec.name, ModelEntry())
            served = entry.versions.get(spec.version)
            if served and served.spec != spec:
                raise LoadError(
                    f"{spec.key} is served from another folder; choose another version, or "
                    "unload that one first",
                    status=409,
                )
            started = await self._fleet.start(spec)
            # Read again: what the rule learnt meanwhile is kept.
            entry = self._table.models.get(spec.name, ModelEntry())
            try:
                _check_alike(entry, spec, started)
            except LoadError:
                await self._fleet.stop(spec)
                raise
            versions = {**entry.versions, spec.version: VersionEntry(spec, started)}
            await self._publish({spec.name: replace(entry, versions=versions)})

    async def unload(self, name: str, version: str) -> None:
        """See `Control.unload`."""
        async with self._lock:
            entry = self._table.models.get(name, ModelEntry())
            if version not in entry.versions:
                raise LoadError(f"{name}@{version} is not served", status=404)
            if version in _named(entry.rule):
                raise LoadError(
                    f"traffic of {name!r} names version {version!r}; change the traffic first",
                    status=409,
                )
            spec = entry.versions[version].spec
            rest = {v: one for v, one in entry.versions.items() if v != version}
            await self._publish({name: replace(entry, versions=rest) if rest else None})
            await self._until_obeyed()
            await self._fleet.stop(spec)

    async def set_rule(self, name: str, rule: Mapping[str, Any]) -> None:
        """See `Control.set_rule`."""
        async with self._lock:
            entry = self._table.models.get(name)
            if entry is None:
                raise LoadError(f"model {name!r} is not served", status=404)
            unknown = sorted(_named(rule) - entry.versions.keys())
            if unknown:
                raise LoadError(
                    f"traffic of {name!r} names versions {unknown}, but there are "
                    f"{list(entry.versions)}; load them first"
                )
            judge = make_judge(rule)
            if judge is None:
                self._judges.pop(name, None)
            else:
                self._judges[name] = judge
            state = judge.state() if judge else {}
            await self._publish({name: replace(entry, rule=dict(rule), state=state)})

    async def _publish(self, changes: Mapping[str, ModelEntry | None]) -> None:
        models = {**self._table.models, **changes}
        kept = {name: entry for name, entry in models.items() if entry is not None}
        self._table = Table(self._table.generation + 1, kept)
        self._keep()
        async with self._changed:
            self._changed.notify_all()

    async def _until_obeyed(self) -> None:
        """Waits until every gateway that is alive obeys the table."""
        wanted = self._table.generation

        def obeyed() -> bool:
            alive = time.monotonic() - _FOLLOW_SECONDS
            return all(known >= wanted for known, at in self._obeys.values() if at > alive)

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_SECONDS):
                    await self._changed.wait_for(obeyed)

    # --- what survives ----------------------------------------------------------------------

    def _keep(self) -> None:
        if self._state is None:
            return
        models = {
            name: {
                "rule": dict(entry.rule),
                "versions": [asdict(one.spec) for one in entry.versions.values()],
            }
            for name, entry in self._table.models.items()
        }
        write_json(self._state, {"format": FORMAT, "models": models})

    async def restore(self) -> bool:
        """Goes on from the state file, where there is one: whether there was."""
        if self._state is None or not self._state.exists():
            return False
        models = json.loads(self._state.read_text())["models"]
        for name, entry in models.items():
            for spec in entry["versions"]:
                await self.load(VersionSpec(**spec))
            await self.set_rule(name, entry["rule"])
        return True


def _named(rule: Mapping[str, Any]) -> set[str]:
    """The versions that a traffic section names."""
    named = {*rule.get("weights", ()), *rule.get("versions", ()), *rule.get("shadows", ())}
    return named | {rule[key] for key in ("stable", "canary") if key in rule}


def _check_alike(entry: ModelEntry, spec: VersionSpec, started: Started) -> None:
    for other in entry.versions.values():
        card, had = started.card, other.started.card
        if (card.shape, card.label_names) != (had.shape, had.label_names):
            raise LoadError(
                f"versions of a model share input shape and labels, but {spec.key} has "
                f"{list(card.shape)} and {len(card.label_names)} labels, {other.spec.key} "
                f"{list(had.shape)} and {len(had.label_names)}; serve it under another name"
            )
