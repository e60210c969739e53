"""What gateways may ask of the operator; across processes, or in this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.serve.control.table import Table, VersionSpec
from orchestrator.serve.traffic.rule import Outcome


class Control(Protocol):
    """The operator, seen from a gateway."""

    async def table(self, gateway: str, known: int) -> Table:
        """The newest table; waits up to a few seconds for one above generation `known`.

        Args:
            gateway: who asks; by asking it says that it obeys `known`.
        """
        ...

    async def load(self, spec: VersionSpec) -> None:
        """Starts a version, and lets it answer once it is ready.

        Raises:
            LoadError: if it does not start; nothing has changed then.
        """
        ...

    async def unload(self, name: str, version: str = "") -> None:
        """Takes a version away, or the model; requests that it has are answered first.

        Args:
            version: empty for all of them.

        Raises:
            LoadError: if it is not served, or the model's traffic names this one version.
        """
        ...

    async def set_rule(self, name: str, rule: Mapping[str, Any]) -> None:
        """Replaces who of a model's versions answers.

        Args:
            rule: a section of `serve.traffic`, validated.

        Raises:
            LoadError: if the model, or a version that the rule names, is not served.
        """
        ...

    async def report(
        self,
        gateway: str,
        outcomes: Mapping[str, Sequence[Outcome]],
        rewards: Mapping[str, Sequence[tuple[str, float]]],
    ) -> None:
        """Tells how requests went since the last report.

        Args:
            outcomes: by model.
            rewards: (version, reward in 0..1) by model, as clients reported them.
        """
        ...


class LoadError(Exception):
    """A change of what is served that can't be made.

    Args:
        message: why, and the way out.
        status: the HTTP status that says so.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status

    def __reduce__(self) -> tuple[type[LoadError], tuple[str, int]]:
        return type(self), (self.message, self.status)
