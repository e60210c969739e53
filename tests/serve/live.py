"""The whole HTTP server on a loopback port, in a thread of this process: no Ray, nothing mocked.

with live_server([VersionSpec("shoes", "1", str(root))]) as live:
    live.client.get("/v2/models/shoes")
    live.call(live.operator.unload("shoes", "1"))
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.backend import Backend
from orchestrator.serve.compute import LocalFleet
from orchestrator.serve.control.link import Link
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.gateway import create_app
from orchestrator.serve.http_server import server_config
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher

T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]


def until(done: Callable[[], bool], seconds: float = 180) -> None:
    """Waits until something is so; the limit only ends what would never be."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds:g} seconds"
        time.sleep(0.01)


@dataclass
class Live:
    """A server that answers.

    Attributes:
        client: asks it; `client.base_url` is where it is.
        backend: what answers; a `Dispatcher` unless the test brought its own.
        operator, link, dispatcher: what is served, and its changes; only where the server has
            them, so not over a backend of the test's own.
    """

    host: str
    port: int
    client: httpx.Client
    app: FastAPI
    backend: Backend
    loop: asyncio.AbstractEventLoop
    _operator: Operator | None = None
    _link: Link | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def operator(self) -> Operator:
        assert self._operator is not None
        return self._operator

    @property
    def link(self) -> Link:
        assert self._link is not None
        return self._link

    @property
    def dispatcher(self) -> Dispatcher:
        assert isinstance(self.backend, Dispatcher)
        return self.backend

    def call(self, work: Coroutine[Any, Any, T], seconds: float = 180) -> T:
        """Runs a coroutine on the server's event loop, and waits for what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def settle(self) -> None:
        """Waits until the gateway obeys the operator's newest table."""
        until(lambda: self.link.table.generation >= self.operator.current.generation)

    def connect(self, seconds: float = 180) -> socket.socket:
        """A raw connection, for what no HTTP client would send."""
        return socket.create_connection((self.host, self.port), timeout=seconds)


@contextlib.contextmanager
def live_server(
    specs: Sequence[VersionSpec] = (),
    *,
    config: ServeConfig | None = None,
    settings: GatewaySettings | None = None,
    backend: Backend | None = None,
    fleet: LocalFleet | None = None,
    state: Path | None = None,
    **server: Any,
) -> Iterator[Live]:
    """Serves until the block ends.

    Args:
        specs: versions that are loaded before it answers.
        config: limits of the queue, of clients, and what executors are built from.
        settings: of the gateway; by default those that `config` asks for.
        backend: what answers instead of an operator's versions; nothing can be changed then.
        fleet, state: see `Operator`.
        server: see `server_config`.
    """
    config = config or ServeConfig()
    parts = _Parts(backend) if backend else _controlled(config, fleet or LocalFleet(config), state)
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    @contextlib.asynccontextmanager
    async def beside(app: FastAPI) -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        task = await parts.begin(specs, config)
        ready.set()
        yield
        if task is not None:
            task.cancel()

    app = create_app(
        parts.backend, settings or GatewaySettings.of(config), parts.operator, parts.link, beside
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        options = {"timeout_graceful_shutdown": 2} | server
        runner = uvicorn.Server(server_config(app, **options))
        thread = threading.Thread(target=runner.run, args=([listening],), daemon=True)
        thread.start()
        try:
            # A server that fails to start ends its thread.
            while not (ready.wait(0.05) and runner.started):
                assert thread.is_alive(), "the server did not start; its error is in the log"
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=180) as client:
                yield Live(
                    "127.0.0.1",
                    port,
                    client,
                    app,
                    parts.backend,
                    loops[0],
                    parts.operator,
                    parts.link,
                )
        finally:
            runner.should_exit = True
            thread.join(60)


@dataclass
class _Parts:
    backend: Backend
    operator: Operator | None = None
    link: Link | None = None

    async def begin(
        self, specs: Sequence[VersionSpec], config: ServeConfig
    ) -> asyncio.Task[None] | None:
        """Loads what is served from the start, and follows the operator from then on."""
        if self.operator is None or self.link is None:
            return None
        for spec in specs:
            await self.operator.load(spec)
        for name, rule in config.traffic.items():
            await self.operator.set_rule(name, rule.model_dump(mode="json"))
        if specs:
            await self.link.follow_once()
        return asyncio.ensure_future(self.link.run())


def _controlled(config: ServeConfig, fleet: LocalFleet, state: Path | None) -> _Parts:
    limits = QueueLimits.of(config)
    operator = Operator(fleet, state)
    dispatcher = Dispatcher(limits, lambda name, outcome: link.observe(name, outcome))
    link = Link(operator, dispatcher, fleet.connect)
    return _Parts(dispatcher, operator, link)
