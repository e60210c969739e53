"""The server's own socket: what comes before a request is one, HTTPS, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.serve import http_server
from orchestrator.serve.http_server import HttpServer
from orchestrator.serve.tls import Certificate
from tests.serve.live import free_ports, until
from tests.serve.ray_server import make_certificate

get = functools.partial(httpx.get, timeout=180)


def application(entered: Callable[[], None] = lambda: None) -> FastAPI:
    """Says hello, and calls `entered` before."""
    app = FastAPI()

    @app.get("/")
    async def hello(wait: float = 0) -> str:
        entered()
        await asyncio.sleep(wait)
        return "hello"

    return app


@contextlib.contextmanager
def serving(
    certificate: Certificate | None = None, entered: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, HttpServer]]:
    """A server on an event loop in a thread, as a gateway's process has it."""
    (port,) = free_ports(1)
    server = HttpServer(application(entered), "127.0.0.1", port, certificate)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.call_soon_threadsafe(server.begin)
    try:

        def answers() -> bool:
            server.check()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            return False

        until(answers)
        yield port, server
    finally:
        asyncio.run_coroutine_threadsafe(server.end(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 60)


def said(connection: socket.socket) -> bytes:
    found = b""
    while more := connection.recv(65536):
        found += more
    return found


@pytest.fixture
def hurry(monkeypatch) -> Callable[[], None]:
    """From its call on heads have 0.3 seconds; what a test sends before is never too slow."""
    monkeypatch.setattr(http_server, "_LOOK_SECONDS", 0.1)
    return lambda: monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"\r\n",
        b"GET",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT",
    ],
)
def test_a_head_that_does_not_come_is_not_waited_for(hurry, begin):
    with serving() as (port, _), connect(port) as connection:
        connection.sendall(begin)
        hurry()
        answer = said(connection)
    answered, refusal = answer.count(b"200 OK"), answer[answer.index(b"HTTP/1.1 408 ") :]
    assert answered == begin.count(b"\r\n\r\n")
    assert b"connection: close" in refusal and b"content-type: application/json" in refusal
    assert refusal.endswith(b'{"error": "a request\'s head has to be there within 0.3 seconds"}')


def test_an_empty_line_between_requests_is_not_waited_for_without_end(hurry):
    with serving() as (port, _), connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        first = b""
        while not first.endswith(b'"hello"'):
            first += connection.recv(65536)
        connection.sendall(b"\r\n")
        hurry()
        assert said(connection).startswith(b"HTTP/1.1 408 ")


def test_one_byte_now_and_then_is_no_head(hurry):
    hurry()
    with serving() as (port, _), connect(port) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in b"GET / HTTP/1.1\r\nHost: here\r\nX-Slow: " + b"a" * 200:
            with contextlib.suppress(ConnectionError):
                connection.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer += connection.recv(65536)
            if answer:
                break
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_request_that_takes_its_time_is_not_a_slow_head(monkeypatch, hurry):
    patience = http_server.HEAD_SECONDS
    with serving(entered=hurry) as (port, _), httpx.Client(timeout=180) as client:
        for _ in range(2):
            monkeypatch.setattr(http_server, "HEAD_SECONDS", patience)
            assert client.get(f"http://127.0.0.1:{port}/?wait=0.6").json() == "hello"


def test_a_head_without_end_is_refused():
    with serving() as (port, _), connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        # What lies in the sockets' buffers is no measure of what the server has read.
        end = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                connection.sendall(b"X-More: " + b"a" * 1000 + b"\r\n")
        assert time.monotonic() < end, "the server goes on reading"
        with contextlib.suppress(ConnectionError):
            answer = said(connection)
            assert answer.startswith(b"HTTP/1.1 431 ") and b"65,536 bytes" in answer
        # Others are served as before.
        assert get(f"http://127.0.0.1:{port}/").json() == "hello"


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00", b"hello\r\n\r\n", b"GET / XTTP/9\r\n\r\n"]
)
def test_what_is_no_http_gets_a_json_error(junk):
    with serving() as (port, _), connect(port) as connection:
        connection.sendall(junk)
        answer = said(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"error": "this is no HTTP request"}')


def test_it_speaks_https_and_nothing_else(tmp_path):
    pair = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    make_certificate(pair)
    trusted = ssl.create_default_context(cafile=pair.certificate)
    with serving(pair) as (port, _):
        assert get(f"https://localhost:{port}/", verify=trusted).json() == "hello"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            get(f"https://localhost:{port}/")
        with pytest.raises(httpx.HTTPError):
            get(f"http://localhost:{port}/")


def test_its_end_answers_what_is_under_way():
    entered = threading.Event()
    with serving(entered=entered.set) as (port, server):
        found: list[int] = []

        def ask() -> None:
            found.append(get(f"http://127.0.0.1:{port}/?wait=0.5").status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        assert entered.wait(60)
    asking.join()
    assert found == [200]
    server.check()  # One that was ended is not one that has failed.
    with pytest.raises(httpx.ConnectError):
        get(f"http://127.0.0.1:{port}/")


def test_one_that_stands_by_takes_the_port_once_it_is_free():
    with serving() as (port, _):
        second = HttpServer(application(), "127.0.0.1", port)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        loop.call_soon_threadsafe(second.begin)
        threading.Event().wait(0.2)
        second.check()
        assert get(f"http://127.0.0.1:{port}/").json() == "hello"

    def taken() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            return get(f"http://127.0.0.1:{port}/").json() == "hello"
        return False

    until(taken)
    asyncio.run_coroutine_threadsafe(second.end(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_one_that_waits_can_be_ended():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HttpServer(application(), "127.0.0.1", taken.getsockname()[1])

        async def run() -> None:
            server.begin()
            await asyncio.sleep(0.1)
            await server.end()
            server.check()

        asyncio.run(run())


def test_an_address_that_is_not_here_is_told_of():
    server = HttpServer(application(), "192.0.2.1", 0)

    async def run() -> None:
        server.begin()
        async with asyncio.timeout(180):
            while True:
                server.check()
                await asyncio.sleep(0.01)

    with pytest.raises(RuntimeError, match=r"has ended.*assign"):
        asyncio.run(run())
