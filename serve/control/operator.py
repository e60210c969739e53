"""Who changes what is served: starts versions, publishes the table, takes versions away.

Gateways go on with the table that they have while the operator is away, and a new operator goes on
from the state file of the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import OrchError
from orchestrator.serve.control.checks import check_alike, named_versions
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.judges import Judge, make_judge
from orchestrator.serve.control.places import Places
from orchestrator.serve.control.state import read_state, write_state
from orchestrator.serve.control.table import (
    Event,
    ModelEntry,
    Started,
    Table,
    VersionEntry,
    VersionSpec,
)
from orchestrator.serve.traffic.rule import Outcome
from orchestrator.serve.wire.place import Place

_POLL_SECONDS = 5.0
_FOLLOW_SECONDS = 30.0
"""How long gateways may take to obey a table before the operator goes on without them."""
_LEARN_SECONDS = 1.0
"""What was learnt is published and written to the disk at most this often."""
_EVENTS = 100
_LOG = logging.getLogger(__name__)


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

    async def keep_only(self, specs: Sequence[VersionSpec]) -> None:
        """Ends whatever else an operator that was killed had started."""
        ...


class Operator:
    """The one place where the table changes; see `Control`. One event loop's.

    Args:
        fleet: starts and ends replicas.
        state: file that survives this process; None keeps nothing.
    """

    def __init__(self, fleet: Fleet, state: Path | None = None) -> None:
        self._fleet, self._state = fleet, state
        # Nothing is published before the first change: a restarted operator must not tell
        # gateways of an empty table.
        self._table = Table()
        self._changed = asyncio.Condition()
        self._lock = asyncio.Lock()
        self._obeys: dict[str, tuple[int, float]] = {}
        self._complete_at = 0.0
        self._judges: dict[str, Judge] = {}
        self._learnt: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        self._places = Places()

    @property
    def current(self) -> Table:
        """What is served now."""
        return self._table

    # --- what gateways ask ------------------------------------------------------------------

    async def table(self, gateway: str, known: int) -> Table:
        """See `Control.table`."""
        self._obeys[gateway] = (known, time.monotonic())
        if self._places.expire(time.monotonic()):
            await self._tell_places()
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
            if judge is None or name not in self._table.models:
                continue
            decided = judge.observe(outcomes.get(name, ()), rewards.get(name, ()))
            self._learnt.add(name)
            if decided:
                await self._tell(*(self._event(name, message) for message in decided))
        if self._learnt and self._telling is None:
            self._telling = asyncio.ensure_future(self._tell_later())

    async def _tell_later(self) -> None:
        await asyncio.sleep(_LEARN_SECONDS)
        self._telling = None
        await self._tell()

    async def _tell(self, *events: Event) -> None:
        """Publishes what rules need of what was learnt, and keeps all of it."""
        learnt, self._learnt = self._learnt, set()
        changes = {
            name: replace(entry, state=self._judges[name].state())
            for name, entry in self._table.models.items()
            if name in learnt and name in self._judges
        }
        news = {n: one for n, one in changes.items() if one.state != self._table.models[n].state}
        if news or events:
            await self._publish(news, *events)
        else:
            self._keep()

    # --- what replicas say ------------------------------------------------------------------

    async def enlist(self, key: str, place: Place) -> None:
        """Notes where a replica listens; it says so again and again.

        Args:
            key: of its version.
        """
        if self._places.enlist(key, place, time.monotonic()):
            await self._tell_places()

    async def _tell_places(self) -> None:
        # Before the first table there is nobody to tell; it will say where replicas are.
        if self._table.generation:
            listed = self._places.listed()
            self._table = replace(self._table, generation=self._next(), places=listed)
            await self._notify()

    # --- changes ----------------------------------------------------------------------------

    async def begin(
        self, specs: Sequence[VersionSpec], rules: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Starts what is served from the start: goes on from the state file, where there is one.

        Args:
            specs: versions; those of the state file instead where there is one.
            rules: traffic sections by model; likewise.

        Raises:
            LoadError: if a version of `specs` does not start, or a rule does not fit.
        """
        if await self.restore():
            return
        async with self._lock:
            models: dict[str, ModelEntry] = {}
            for spec in specs:
                # One after another: what each measures while it starts must be its own speed.
                one = await self._fleet.start(spec)
                entry = models.get(spec.name, ModelEntry())
                check_alike(entry, spec, one)
                versions = {**entry.versions, spec.version: VersionEntry(spec, one)}
                models[spec.name] = replace(entry, versions=versions)
            for name, rule in rules.items():
                models[name] = self._ruled(name, models.get(name), rule)
            await self._publish(models)

    async def load(self, spec: VersionSpec) -> None:
        """See `Control.load`; a version that is served from this folder already stays."""
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
                check_alike(entry, spec, started)
            except LoadError:
                await self._fleet.stop(spec)
                raise
            if served:
                return
            versions = {**entry.versions, spec.version: VersionEntry(spec, started)}
            event = self._event(spec.name, f"version {spec.version!r} loaded ({started.executor})")
            await self._publish({spec.name: replace(entry, versions=versions)}, event)

    async def unload(self, name: str, version: str = "") -> None:
        """See `Control.unload`."""
        async with self._lock:
            entry = self._table.models.get(name, ModelEntry())
            gone = [version] if version else list(entry.versions)
            if not gone or version not in {"", *entry.versions}:
                key = f"{name}@{version}" if version else f"model {name!r}"
                raise LoadError(f"{key} is not served", status=404)
            rest = {v: one for v, one in entry.versions.items() if v not in gone}
            if rest and version in named_versions(entry.rule):
                raise LoadError(
                    f"traffic of {name!r} names version {version!r}; change the traffic first",
                    status=409,
                )
            if not rest:
                self._judges.pop(name, None)
            event = self._event(name, f"unloaded: {', '.join(gone)}")
            await self._publish({name: replace(entry, versions=rest) if rest else None}, event)
            await self._until_obeyed()
            for one in gone:
                await self._fleet.stop(entry.versions[one].spec)

    async def set_rule(self, name: str, rule: Mapping[str, Any]) -> None:
        """See `Control.set_rule`; what a bandit has learnt of versions that stay is kept."""
        async with self._lock:
            entry = self._ruled(name, self._table.models.get(name), rule)
            await self._publish({name: entry}, self._event(name, f"traffic is {rule['type']} now"))

    def _ruled(self, name: str, entry: ModelEntry | None, rule: Mapping[str, Any]) -> ModelEntry:
        """The model's entry under another rule, whose judge replaces the one before."""
        if entry is None:
            raise LoadError(f"model {name!r} is not served", status=404)
        unknown = sorted(named_versions(rule) - entry.versions.keys())
        if unknown:
            raise LoadError(
                f"traffic of {name!r} names versions {unknown}, but there are "
                f"{list(entry.versions)}; load them first"
            )
        before = self._judges.pop(name, None)
        learnt = before.memory() if before and rule["type"] == "bandit" else None
        judge = make_judge(rule, learnt)
        return self._judged(name, replace(entry, rule=dict(rule)), judge)

    def _judged(self, name: str, entry: ModelEntry, judge: Judge | None) -> ModelEntry:
        if judge is None:
            return replace(entry, state={}, learns=False)
        self._judges[name] = judge
        return replace(entry, state=judge.state(), learns=True)

    def _event(self, name: str, message: str) -> Event:
        _LOG.info("%s: %s", name, message)
        return Event(round(time.time(), 3), name, message)

    async def _publish(self, changes: Mapping[str, ModelEntry | None], *events: Event) -> None:
        models = {**self._table.models, **changes}
        kept = {name: entry for name, entry in models.items() if entry is not None}
        events = (*self._table.events, *events)[-_EVENTS:]
        self._table = Table(self._next(), kept, events, self._places.listed())
        self._keep()
        await self._notify()

    def _next(self) -> int:
        """A generation above all before, those of operators before this one included."""
        return max(self._table.generation + 1, time.time_ns())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until_obeyed(self) -> None:
        """Waits until every gateway that is alive obeys the table."""
        # Right after a restart it is not known yet which gateways there are.
        await asyncio.sleep(max(0.0, self._complete_at - time.monotonic()))
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
        if self._state is not None:
            memories = {name: judge.memory() for name, judge in self._judges.items()}
            write_state(self._state, self._table, memories)

    async def restore(self) -> bool:
        """Goes on from the state file, where there is one: whether there was.

        A version that no longer starts is left out, with an event: the others go on.
        """
        if self._state is None or not self._state.exists():
            return False
        state = read_state(self._state)
        async with self._lock:
            events = list(state.events)
            models: dict[str, ModelEntry | None] = {}
            for name, kept in state.models.items():
                versions, failed = await self._started_again(kept.specs)
                events += [self._event(name, message) for message in failed]
                judge = make_judge(kept.rule, kept.memory)
                entry = ModelEntry(versions, kept.rule)
                models[name] = self._judged(name, entry, judge) if versions else None
            known = [one.spec for e in models.values() if e for one in e.versions.values()]
            self._table = Table(state.generation)
            self._complete_at = time.monotonic() + 2 * _POLL_SECONDS
            await self._publish(models, *events)
            await self._fleet.keep_only(known)
        return True

    async def _started_again(
        self, specs: Sequence[VersionSpec]
    ) -> tuple[dict[str, VersionEntry], list[str]]:
        """Those versions that start, and why others do not."""
        versions: dict[str, VersionEntry] = {}
        failed = []
        for spec in specs:
            try:
                versions[spec.version] = VersionEntry(spec, await self._fleet.start(spec))
            except (LoadError, OrchError) as error:
                failed.append(f"version {spec.version!r} did not start again: {error}")
        return versions, failed
