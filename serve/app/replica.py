"""A version's replica as a Serve deployment, and a gateway's way to it."""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from orchestrator.config.serving import Replicas, ServeConfig
from orchestrator.run_folder.statistics import Statistics
from orchestrator.serve.app.names import APP, LOST, OPERATOR
from orchestrator.serve.backend import Heat, NoAnswerError, Pixels
from orchestrator.serve.control.places import BEAT_SECONDS
from orchestrator.serve.control.scaling import BATCHES
from orchestrator.serve.control.table import VersionEntry, VersionSpec
from orchestrator.serve.replica import ModelReplica
from orchestrator.serve.wire import pool
from orchestrator.serve.wire.listener import Listener
from orchestrator.serve.wire.pool import WirePool

_LOG = logging.getLogger(__name__)


class RayReplica(ModelReplica):
    """A replica that listens for gateways, and tells the operator where.

    Args:
        spec, config: see `ModelReplica`.
    """

    def __init__(self, spec: VersionSpec, config: ServeConfig) -> None:
        super().__init__(spec, config)
        self._key = spec.key
        self._listener = Listener(self, ray.util.get_node_ip_address())
        # Serve builds deployments on the event loop that their methods run on.
        self._tasks = [
            asyncio.ensure_future(self._listener.run()),
            asyncio.ensure_future(self._enlist()),
        ]

    async def _enlist(self) -> None:
        while True:
            try:
                await _operator().enlist.remote(self._key, self._listener.place)
            except Exception as error:
                # It restarts; gateways that know this replica go on asking it.
                _LOG.debug("the operator can't be told where a replica listens: %s", error)
            await asyncio.sleep(BEAT_SECONDS)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve scales by."""
        return {BATCHES: float(self._listener.under_way)}

    async def __del__(self) -> None:
        # Serve awaits this before it ends a replica that it has no more use for.
        if listener := getattr(self, "_listener", None):
            self._tasks[1].cancel()
            await listener.leave()


@cache
def _operator() -> DeploymentHandle:
    return serve.get_deployment_handle(OPERATOR, APP)


class RayPool(WirePool):
    """The replicas of one version: batches by the wire, questions that are rare by Ray."""

    def __init__(self, entry: VersionEntry, config: ServeConfig) -> None:
        scale = config.replicas
        if isinstance(scale, Replicas):
            # One more than there are replicas for, so that Serve sees when more would do.
            super().__init__(entry.started, max(pool.BATCHES, scale.batches), spare=1)
        else:
            super().__init__(entry.started)
        self._key = entry.spec.key
        self._handle: DeploymentHandle | None = None

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """See `Pool.explain`."""
        heat: Heat = await self._asked("explain", pixels, label)
        return heat

    async def statistics(self) -> Statistics | None:
        """See `Pool.statistics`."""
        found: Statistics | None = await self._asked("statistics")
        return found

    async def _asked(self, method: str, *arguments: Any) -> Any:
        # Made on the gateway's event loop, at the first question.
        if self._handle is None:
            self._handle = serve.get_app_handle(self._key)
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, NoAnswerError):
                raise error.cause from None
            raise
        except LOST:
            raise NoAnswerError("the model's replicas restart; try again", status=503) from None
