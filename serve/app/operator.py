"""The operator as a Serve deployment, and its handle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.app.fleet import RayFleet
from orchestrator.serve.app.names import LOST
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.table import Table, VersionSpec
from orchestrator.serve.traffic.rule import Outcome


class OperatorReplica(Operator):
    """The operator in a process of its own; see `Control`.

    Args:
        specs: versions that are served from the start.
        rules: traffic sections by model.
        state: file from which a restarted operator goes on.
    """

    def __init__(
        self,
        config: ServeConfig,
        specs: Sequence[VersionSpec],
        rules: Mapping[str, Mapping[str, Any]],
        state: str,
    ) -> None:
        super().__init__(RayFleet(config), Path(state))
        self._wanted = specs, rules
        self._begun: asyncio.Task[None] | None = None

    async def begun(self) -> None:
        """Starts what is served from the start, once; returns when it is.

        Raises:
            LoadError: if a version does not start.
        """
        if self._begun is None:
            self._begun = asyncio.ensure_future(self.begin(*self._wanted))
        await asyncio.shield(self._begun)

    async def table(self, gateway: str, known: int) -> Table:
        """See `Control.table`; the first question after a restart is what makes it go on."""
        if self._begun is None:
            self._begun = asyncio.ensure_future(self.begin(*self._wanted))
        return await super().table(gateway, known)

    async def look(self) -> Table:
        """What is served now, for whoever does not obey it."""
        return self.current

    # What is asked right after a restart waits until it goes on.

    async def load(self, spec: VersionSpec) -> None:
        """See `Control.load`."""
        await self.begun()
        await super().load(spec)

    async def unload(self, name: str, version: str = "") -> None:
        """See `Control.unload`."""
        await self.begun()
        await super().unload(name, version)

    async def set_rule(self, name: str, rule: Mapping[str, Any]) -> None:
        """See `Control.set_rule`."""
        await self.begun()
        await super().set_rule(name, rule)

    async def report(
        self,
        gateway: str,
        outcomes: Mapping[str, Sequence[Outcome]],
        rewards: Mapping[str, Sequence[tuple[str, float]]],
    ) -> None:
        """See `Control.report`."""
        await self.begun()
        await super().report(gateway, outcomes, rewards)


class RayControl:
    """The operator's handle as a `Control`."""

    def __init__(self, operator: DeploymentHandle) -> None:
        self._operator = operator

    async def table(self, gateway: str, known: int) -> Table:
        """See `Control.table`."""
        found: Table = await self._asked("table", gateway, known)
        return found

    async def load(self, spec: VersionSpec) -> None:
        """See `Control.load`."""
        await self._asked("load", spec)

    async def unload(self, name: str, version: str = "") -> None:
        """See `Control.unload`."""
        await self._asked("unload", name, version)

    async def set_rule(self, name: str, rule: Mapping[str, Any]) -> None:
        """See `Control.set_rule`."""
        await self._asked("set_rule", name, rule)

    async def report(
        self,
        gateway: str,
        outcomes: Mapping[str, Sequence[Outcome]],
        rewards: Mapping[str, Sequence[tuple[str, float]]],
    ) -> None:
        """See `Control.report`."""
        await self._asked("report", gateway, outcomes, rewards)

    async def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._operator, method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, LoadError):
                raise error.cause from None
            raise
        except LOST:
            raise LoadError("the operator restarts; try again", status=503) from None
