"""The Ray Serve application: gateways that speak HTTP, replicas of each version, the operator.

Each version is a Serve application of its own without a route, so that versions come and go while
gateways answer. Gateways gather requests into batches and ask replicas; the operator starts and
ends versions, and publishes what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from orchestrator.config.serving import Replicas, ServeConfig
from orchestrator.errors import WorkError
from orchestrator.run_folder.statistics import Statistics
from orchestrator.serve.backend import (
    Computed,
    Heat,
    Inputs,
    NoAnswerError,
    Pixels,
    ReplicaLostError,
)
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.link import Link
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.table import Started, Table, VersionEntry, VersionSpec
from orchestrator.serve.gateway import create_app
from orchestrator.serve.replica import ModelReplica
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.rule import Outcome

APP = "orch"
MODEL = "model"
"""The one deployment of each version's application."""
_LOST = (
    RayActorError,
    ActorUnavailableError,
    WorkerCrashedError,
    OutOfMemoryError,
    DeploymentUnavailableError,
    BackPressureError,
)
_LOOK_SECONDS = 1.0
_COUNT_SECONDS = 2.0
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
_START_SECONDS = 300.0
"""How long a version may take until its replicas are ready."""
_BATCHES = 2
"""Batches under way for each replica: one is computed while the next one travels."""
_HEALTH = {"health_check_period_s": 2, "graceful_shutdown_timeout_s": 10}


class RayFleet:
    """Versions as Serve applications; see `Fleet`."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config

    async def start(self, spec: VersionSpec) -> Started:
        """See `Fleet.start`."""
        await asyncio.to_thread(self._run, spec)
        started: Started = await serve.get_app_handle(spec.key).started.remote()
        return started

    def _run(self, spec: VersionSpec) -> None:
        status = serve.status().applications.get(spec.key)
        if status is None or status.status != "RUNNING":  # by the operator before this one
            application = version_application(spec, self._config)
            target = serve.RunTarget(application, spec.key, None, _QUIET)
            serve.run_many([target], wait_for_applications_running=False)
        end = time.monotonic() + _START_SECONDS
        # One that is unhealthy for a moment, as after a fault, is waited for.
        while (status := serve.status().applications.get(spec.key)) is None or (
            status.status not in ("RUNNING", "DEPLOY_FAILED")
        ):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        if status is not None and status.status == "RUNNING":
            return
        why = _why(status, f"not ready after {_START_SECONDS:g} seconds; are there CPUs for it?")
        serve.delete(spec.key)
        raise LoadError(f"{spec.key} did not start: {why}")

    async def stop(self, spec: VersionSpec) -> None:
        """See `Fleet.stop`."""
        await asyncio.to_thread(serve.delete, spec.key)

    async def keep_only(self, specs: Sequence[VersionSpec]) -> None:
        """See `Fleet.keep_only`."""
        kept = {spec.key for spec in specs}
        found = await asyncio.to_thread(serve.status)
        for name, one in found.applications.items():
            if "@" in name and [*one.deployments] == [MODEL] and name not in kept:
                await asyncio.to_thread(serve.delete, name)


def _why(status: Any, otherwise: str) -> str:
    """The last line of what a replica died of."""
    messages = [one.message for one in status.deployments.values()] if status else []
    text = next((message for message in messages if message), otherwise)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return re.sub(r"^[\w.]+Error: ", "", (named or lines)[-1])


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
        except _LOST:
            raise LoadError("the operator restarts; try again", status=503) from None


class RayPool:
    """The replicas of one version; see `Pool`."""

    def __init__(self, entry: VersionEntry, config: ServeConfig) -> None:
        self.card: ModelCard = entry.started.card
        self.max_batch = entry.started.max_batch
        self._key, self._scale = entry.spec.key, config.replicas
        self._replica_count = self._scale.min if isinstance(self._scale, Replicas) else self._scale
        self._counting: asyncio.Task[None] | None = None
        self._handle: DeploymentHandle | None = None

    @property
    def capacity(self) -> int:
        """See `Pool.capacity`."""
        if not isinstance(self._scale, Replicas):
            return _BATCHES * self._replica_count
        # One more than the replicas there are get on with, so that Serve sees when more would do.
        return math.ceil(max(_BATCHES, self._scale.batches) * self._replica_count) + 1

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """See `Pool.compute`."""
        if isinstance(self._scale, Replicas) and (self._counting is None or self._counting.done()):
            self._counting = asyncio.ensure_future(self._count_replicas())
        try:
            answers: list[Computed | NoAnswerError]
            answers = await self._replicas().compute.remote(list(requests), seconds)
        except _LOST as error:
            raise ReplicaLostError(f"model {self.card.name!r} lost the replica") from error
        return answers

    async def _count_replicas(self) -> None:
        """Finds out how many replicas there are; at most every few seconds."""
        with contextlib.suppress(Exception):
            status = await asyncio.to_thread(serve.status)
            found = status.applications[self._key].deployments[MODEL].replica_states
            self._replica_count = max(1, found.get("RUNNING", 0))
        await asyncio.sleep(_COUNT_SECONDS)

    async def ready(self) -> bool:
        """See `Pool.ready`."""
        try:
            await self._replicas().started.remote()
        except _LOST:
            return False
        return True

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """See `Pool.explain`."""
        heat: Heat = await self._asked("explain", pixels, label)
        return heat

    async def statistics(self) -> Statistics | None:
        """See `Pool.statistics`."""
        found: Statistics | None = await self._asked("statistics")
        return found

    async def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._replicas(), method).remote(*arguments)
        except RayTaskError as error:
            if isinstance(error.cause, NoAnswerError):
                raise error.cause from None
            raise
        except _LOST:
            raise NoAnswerError("the model's replicas restart; try again", status=503) from None

    def _replicas(self) -> DeploymentHandle:
        # Made on the gateway's event loop, at the first question.
        if self._handle is None:
            self._handle = serve.get_app_handle(self._key)
        return self._handle


class GatewayReplica:
    """Speaks HTTP with clients; decodes, checks, queues, and asks the versions' replicas."""

    def __init__(
        self, settings: GatewaySettings, config: ServeConfig, operator: DeploymentHandle
    ) -> None:
        limits = QueueLimits(
            config.limits.waiting, config.batch_wait_ms / 1000, config.limits.compute_seconds
        )
        control = RayControl(operator)
        dispatcher = Dispatcher(limits, lambda name, outcome: link.observe(name, outcome))
        link = Link(control, dispatcher, lambda entry: RayPool(entry, config))

        @contextlib.asynccontextmanager
        async def following(app: FastAPI) -> AsyncIterator[None]:
            # A gateway that takes another's place knows what is served before it is asked. While
            # versions still start there is nothing to know, and no reason to wait longer.
            with contextlib.suppress(Exception):
                await link.follow_once()
            task = asyncio.ensure_future(link.run())
            yield
            task.cancel()

        self._app = create_app(dispatcher, settings, control, link, following)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int


def version_application(spec: VersionSpec, config: ServeConfig) -> serve.Application:
    """The replicas of one version."""
    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if isinstance(config.replicas, Replicas):
        scale = {
            "autoscaling_config": {
                "min_replicas": config.replicas.min,
                "max_replicas": config.replicas.max,
                "target_ongoing_requests": config.replicas.batches,
                "upscale_delay_s": config.replicas.up_seconds,
                "downscale_delay_s": config.replicas.down_seconds,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 5.0,
            }
        }
    deployment = serve.deployment(
        ModelReplica,
        name=MODEL,
        # Batches, and questions whether it is ready.
        max_ongoing_requests=64,
        # A version that can't be loaded is told of soon; one that has been ready is always retried.
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        **_HEALTH,
        **scale,
    )
    return deployment.bind(spec, config)


def build_application(
    specs: Sequence[VersionSpec], config: ServeConfig, settings: GatewaySettings, state: Path
) -> serve.Application:
    """Gateway and operator.

    Args:
        specs: versions that are served from the start.
        config: replicas of each version, and what each of them gets.
        state: a file for what is served, so that a restarted operator goes on.
    """
    operator = serve.deployment(
        OperatorReplica,
        name="operator",
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 0},
        **_HEALTH,
    )
    gateway = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="gateway",
        max_ongoing_requests=4096,
        ray_actor_options={"num_cpus": 0},
        **_HEALTH,
    )
    rules = {name: rule.model_dump(mode="json") for name, rule in config.traffic.items()}
    return gateway.bind(settings, config, operator.bind(config, list(specs), rules, str(state)))


def deployable(arguments: dict[str, Any]) -> serve.Application:
    """What the file of `orch serve --write-config` names; see `deployable_arguments`."""
    # Imported here: it brings torch, which gateways have no use for.
    from orchestrator.serve.deployable import read_arguments

    models, config, settings, state = read_arguments(arguments)
    return build_application([VersionSpec(**one) for one in models], config, settings, state)


def start(
    application: serve.Application, cpus: float, gpus: float, address: Address, temporary: Path
) -> None:
    """Starts a Ray of its own on this machine, and the application on it.

    Args:
        cpus, gpus: of all replicas together.
        temporary: a new folder for Ray's sockets and logs; its path must be short.

    Raises:
        WorkError: if a replica does not start.
    """
    ray.init(
        address="local",
        # Logical cores: more replicas than cores wait for each other, but they do start. There
        # is room for as many again, so that versions can be loaded beside those that answer.
        num_cpus=2 * math.ceil(cpus) + 8,
        num_gpus=math.ceil(gpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(temporary),
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": address.host, "port": address.port},
        logging_config=_QUIET,
    )
    try:
        serve.run(application, name=APP, route_prefix="/", logging_config=_QUIET)
        _operator().begun.remote().result()
    except (RuntimeError, LoadError) as error:
        raise WorkError(f"the server did not start: {error}; its logs are in {temporary}") from None


@cache
def _operator() -> DeploymentHandle:
    return serve.get_deployment_handle("operator", APP)


def look() -> Table | None:
    """What is served now; None while the operator restarts."""
    try:
        asked = _operator().look.remote()
        table: Table = asked.result(timeout_s=_LOOK_SECONDS)
    except Exception:
        return None
    return table


def stop() -> None:
    """Ends the application, its proxy and Ray."""
    if not ray.is_initialized():
        return
    # The controller ends while it is asked to, and Ray prints that as an error of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()
