"""Gateways as Serve deployments: behind Serve's own proxies, or at a door of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.app.address import Address
from orchestrator.serve.app.operator import RayControl
from orchestrator.serve.app.replica import RayPool
from orchestrator.serve.control.link import Link
from orchestrator.serve.gateway import create_app
from orchestrator.serve.http_server import HttpServer
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher


class GatewayReplica:
    """Speaks HTTP with Serve's proxies; decodes, checks, queues, and asks replicas."""

    def __init__(
        self, settings: GatewaySettings, config: ServeConfig, operator: DeploymentHandle
    ) -> None:
        self._app = _application(settings, config, operator)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


class DoorReplica:
    """A gateway that clients reach without a proxy between: one hop less, and no second queue."""

    def __init__(
        self,
        settings: GatewaySettings,
        config: ServeConfig,
        operator: DeploymentHandle,
        address: Address,
    ) -> None:
        app = _application(settings, config, operator)
        self._server = HttpServer(app, address.host, address.port, address.certificate)
        # Serve builds deployments on the event loop that their methods run on.
        self._server.begin()

    def check_health(self) -> None:
        """Serve replaces a gateway that can't listen."""
        self._server.check()

    async def __del__(self) -> None:
        # Serve awaits this before it ends a replica that it has no more use for.
        if server := getattr(self, "_server", None):
            await server.end()


def _application(
    settings: GatewaySettings, config: ServeConfig, operator: DeploymentHandle
) -> FastAPI:
    limits = QueueLimits.of(config)
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

    return create_app(dispatcher, settings, control, link, following)
