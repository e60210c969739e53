"""The socket that clients ask: uvicorn, with limits on what comes before a request is one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from typing import Any, ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orchestrator.serve.guards.sweeping import Sweeper
from orchestrator.serve.tls import Certificate

HEAD_SECONDS = 30.0
"""Within which a request's head has to be there; its body has a limit of its own."""
HEAD_BYTES = 64 * 2**10
_LOOK_SECONDS = 1.0
_KEEP_ALIVE_SECONDS = 75
"""How long a connection without requests stays open: longer than clients keep theirs in pools."""
_LAST_SECONDS = 5
"""How long a server that ends waits for answers under way."""
_BACKLOG = 2048
_BIND_SECONDS = 0.05
"""Between two attempts to take a port that another process has."""
_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
}


class Protocol(HttpToolsProtocol):
    """One connection; a head that is no HTTP, too slow or too long ends it with a JSON error.

    Attributes:
        heads: a server's connections whose next head is not there yet.
    """

    heads: ClassVar[Sweeper[Protocol]]

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._in_head, self._head_bytes = True, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first head."""
        super().connection_made(transport)
        self.heads.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends waiting."""
        self.heads.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads what came; most heads come whole, and are never waited for."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        elif not self._idle:
            self.heads.discard(self)
            return
        # What comes between two requests ends uvicorn's own wait for the next one, too.
        self.heads.add(self)
        if self._head_bytes > HEAD_BYTES:
            self.refuse(431, f"a request's head may have {HEAD_BYTES:,} bytes")

    @property
    def _idle(self) -> bool:
        """Whether every request so far is answered."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """A head is there."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        self.refuse(400, "this is no HTTP request")

    def refuse(self, status: int, message: str) -> None:
        """Writes an error and closes the connection."""
        self.heads.discard(self)
        if self.transport.is_closing():
            return
        body = json.dumps({"error": message})
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
        rest = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
        self.transport.write((head + rest).encode())
        self.transport.close()

    def wait_for_head(self, seconds: float) -> None:
        """Gives up a connection whose head does not come."""
        if seconds > HEAD_SECONDS and self._idle:
            self.refuse(408, f"a request's head has to be there within {HEAD_SECONDS:g} seconds")


def server_config(
    app: FastAPI, certificate: Certificate | None = None, **more: Any
) -> uvicorn.Config:
    """How uvicorn serves an application.

    Args:
        certificate: of HTTPS; None for HTTP.
        more: settings of uvicorn's that take the place of ours.
    """
    heads = Sweeper(_LOOK_SECONDS, Protocol.wait_for_head)
    settings: dict[str, Any] = {
        "http": type("ServerProtocol", (Protocol,), {"heads": heads}),
        "ws": "none",
        "lifespan": "on",
        "log_level": "error",
        # Logging is the process's own: uvicorn's set-up would close every handler that it has.
        "log_config": None,
        "access_log": False,
        # Whom to believe about addresses is decided where they matter.
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": _LAST_SECONDS,
    }
    if certificate is not None:
        files = {"ssl_certfile": certificate.certificate, "ssl_keyfile": certificate.key}
        settings |= files
    return uvicorn.Config(app, **(settings | more))


class HttpServer:
    """Serves an application on a socket of its own, as soon as the port is free. One event loop's.

    Args:
        app: answers.
        host, port: where it listens.
        certificate: of HTTPS; None for HTTP.
    """

    def __init__(
        self, app: FastAPI, host: str, port: int, certificate: Certificate | None = None
    ) -> None:
        self._host, self._port = host, port
        self._server = uvicorn.Server(server_config(app, certificate))
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Starts serving on the running event loop."""
        self._task = asyncio.ensure_future(self._run())

    def check(self) -> None:
        """Makes sure that it serves.

        Raises:
            RuntimeError: if it has ended, saying why.
        """
        if self._task is not None and self._task.done() and not self._server.should_exit:
            why = None if self._task.cancelled() else self._task.exception()
            raise RuntimeError(f"the HTTP server has ended: {why}")

    async def end(self) -> None:
        """Answers what is under way, for some seconds, and closes every connection."""
        self._server.should_exit = True
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        with await self._listening() as listening:
            await self._server.serve(sockets=[listening])

    async def _listening(self) -> socket.socket:
        """The bound socket: one that stands by has it the moment that the other one ends."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        while not self._server.should_exit:
            try:
                return socket.create_server(
                    (self._host, self._port), family=family, backlog=_BACKLOG
                )
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            await asyncio.sleep(_BIND_SECONDS)
        raise asyncio.CancelledError
