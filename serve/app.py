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
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from orchestrator.errors import OrchError, WorkError
from orchestrator.serve.backend import Computed, Inputs, NoAnswerError, ReplicaLostError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.link import Link
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.table import Started, Table, VersionEntry, VersionSpec
from orchestrator.serve.gateway import create_app
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.rule import Outcome

APP = "orch"
_LOST = (
    RayActorError,
    ActorUnavailableError,
    WorkerCrashedError,
    OutOfMemoryError,
    DeploymentUnavailableError,
    BackPressureError,
)
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
_BATCHES = 2
"""Batches under way for each replica: one is computed while the next one travels."""
_HEALTH = {"health_check_period_s": 2, "graceful_shutdown_timeout_s": 10}


class ModelReplica:
    """One version in one process: computes the batches that gateways send."""

    def __init__(self, spec: VersionSpec, config: ServeConfig) -> None:
        # Imported here: gateways share this file, and compute nothing.
        import torch

        from orchestrator.serve.executors.load import load_executor

        torch.set_num_threads(max(1, int(config.cpus)))
        device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        try:
            self._executor = load_executor(Path(spec.root), spec.name, spec.version, config, device)
        except OrchError as error:
            raise LoadError(str(error)) from None
        # Torch computes beside the event loop, which goes on receiving the next batch.
        self._thread = ThreadPoolExecutor(1)
        self._limit = config.limits.compute_seconds
        self._since: float | None = None

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """Answers one batch; see `Pool.compute`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._timed, requests, seconds)

    def _timed(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        from orchestrator.serve.compute import answer_together

        self._since = time.monotonic()
        try:
            return answer_together(self._executor, requests, seconds)
        finally:
            self._since = None

    async def started(self) -> Started:
        """What this replica answers for; one that answers at all has loaded it."""
        one = self._executor
        return Started(one.card, one.max_batch, one.kind)

    async def check_health(self) -> None:
        """Fails while a forward pass hangs, so that Serve replaces this replica."""
        since = self._since
        if since is not None and time.monotonic() - since > self._limit:
            raise RuntimeError(f"a forward pass took more than {self._limit:g} seconds")


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
        if status is not None and status.status == "RUNNING":
            return  # The operator before this one started it.
        try:
            serve.run(
                version_application(spec, self._config),
                name=spec.key,
                route_prefix=None,
                logging_config=_QUIET,
            )
        except RuntimeError as error:
            why = _why(serve.status().applications.get(spec.key), error)
            serve.delete(spec.key)
            raise LoadError(f"{spec.key} did not start: {why}", status=422) from None

    async def stop(self, spec: VersionSpec) -> None:
        """See `Fleet.stop`."""
        await asyncio.to_thread(serve.delete, spec.key)


def _why(status: Any, error: Exception) -> str:
    """The last line of what a replica died of."""
    messages = [one.message for one in status.deployments.values()] if status else []
    text = next((message for message in messages if message), str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or ["unknown"])[-1]


class OperatorReplica:
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
        self._operator = Operator(RayFleet(config), Path(state))
        self._specs, self._rules = specs, rules
        self._begun: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Starts what is served from the start, once; returns when it is.

        Raises:
            LoadError: if a version does not start.
        """
        if self._begun is None:
            self._begun = asyncio.ensure_future(self._begin())
        await asyncio.shield(self._begun)

    async def _begin(self) -> None:
        if await self._operator.restore():
            return
        for spec in self._specs:
            await self._operator.load(spec)
        for name, rule in self._rules.items():
            await self._operator.set_rule(name, rule)

    async def table(self, gateway: str, known: int) -> Table:
        """See `Control.table`."""
        if self._begun is None:
            self._begun = asyncio.ensure_future(self._begin())
        return await self._operator.table(gateway, known)

    async def load(self, spec: VersionSpec) -> None:
        """See `Control.load`."""
        await self._operator.load(spec)

    async def unload(self, name: str, version: str) -> None:
        """See `Control.unload`."""
        await self._operator.unload(name, version)

    async def set_rule(self, name: str, rule: Mapping[str, Any]) -> None:
        """See `Control.set_rule`."""
        await self._operator.set_rule(name, rule)

    async def report(
        self,
        gateway: str,
        outcomes: Mapping[str, Sequence[Outcome]],
        rewards: Mapping[str, Sequence[tuple[str, float]]],
    ) -> None:
        """See `Control.report`."""
        await self._operator.report(gateway, outcomes, rewards)


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

    async def unload(self, name: str, version: str) -> None:
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
        most = config.replicas.max if isinstance(config.replicas, Replicas) else config.replicas
        self.capacity = _BATCHES * most
        self._key = entry.spec.key
        self._handle: DeploymentHandle | None = None

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """See `Pool.compute`."""
        try:
            answers: list[Computed | NoAnswerError]
            answers = await self._replicas().compute.remote(list(requests), seconds)
        except _LOST as error:
            raise ReplicaLostError(f"model {self.card.name!r} lost the replica") from error
        return answers

    async def ready(self) -> bool:
        """See `Pool.ready`."""
        try:
            await self._replicas().started.remote()
        except _LOST:
            return False
        return True

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
            }
        }
    deployment = serve.deployment(
        ModelReplica,
        name="model",
        # Batches, and questions whether it is ready.
        max_ongoing_requests=64,
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
        # Logical cores: more replicas than cores wait for each other, but they do start.
        num_cpus=math.ceil(cpus) + 1,
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
        serve.get_deployment_handle("operator", APP).begin.remote().result()
    except (RuntimeError, LoadError) as error:
        raise WorkError(f"the server did not start: {error}; its logs are in {temporary}") from None


def stop() -> None:
    """Ends the application, its proxy and Ray."""
    if not ray.is_initialized():
        return
    # The controller ends while it is asked to, and Ray prints that as an error of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()
