from __future__ import annotations

import os
import signal
import ssl
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from orchestrator.serve import haproxy
from orchestrator.serve.tls import Certificate
from tests.serve.ray_server import make_certificate

CONFIGURATION = """
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend prometheus
    bind :{first}
    http-request return status 200 content-type text/plain string "hello"
listen stats
  bind *:{second}
  stats enable
"""


RAYS = """defaults
    mode http
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
frontend prometheus
    bind :81
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:82
backend one
  server a 127.0.0.1:8000
"""


@pytest.mark.parametrize(
    ("front", "bind"),
    [
        (haproxy.Front("127.0.0.1", 8000), "127.0.0.1:8000"),
        (haproxy.Front("localhost", 8000), "127.0.0.1:8000"),
        (haproxy.Front("0.0.0.0", 8000), "*:8000"),
        (haproxy.Front("::1", 8000), "::1:8000"),
        (
            haproxy.Front("10.0.0.1", 8000, "/d/both.pem"),
            "10.0.0.1:8000 ssl crt /d/both.pem ssl-min-ver TLSv1.2",
        ),
    ],
)
def test_only_the_clients_bind_leaves_loopback(front, bind):
    text = haproxy.rewritten(RAYS, front, Path("/d"))
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line.startswith("bind")] == [
        "bind 127.0.0.1:81",
        f"bind {bind}",
        "bind 127.0.0.1:82",
    ]
    proto = "https" if front.certificate else "http"
    assert lines[lines.index(f"bind {bind}") + 1 :][:2] == [
        "http-request set-header X-Forwarded-For %[src]",
        f"http-request set-header X-Forwarded-Proto {proto}",
    ]
    assert "server a 127.0.0.1:8000" in lines and "/tmp/500.http" not in text
    assert lines[:2] == ["defaults", "errorfile 400 /d/400.json.http"]
    assert lines.count("timeout http-request 30s") == 1
    # HAProxy may be started again with a file that was rewritten already.
    assert haproxy.rewritten(text, front, Path("/d")) == text


def test_free_ports_differ():
    assert len(set(haproxy.free_ports(5))) == 5


@pytest.fixture
def binary() -> str:
    found = haproxy.available()
    if found is None:
        pytest.skip("Ray Serve has no HAProxy on this platform")
    return found


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """What stands for the server, with whose end everything ends."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_it_listens_on_loopback_and_ends_with_its_parent(tmp_path: Path, binary: str, owner):
    first, second = haproxy.free_ports(2)
    front = haproxy.Front("127.0.0.1", first)
    variables = haproxy.environment(binary, tmp_path, front, owner.pid)
    configuration = Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    configuration.write_text(CONFIGURATION.format(first=first, second=second))
    launcher = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "print(subprocess.Popen(sys.argv[1:]).pid, flush=True)\n"
            "time.sleep(60)",
            *(launcher, "-db", "-f", str(configuration)),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    try:
        assert _answer(first) == "hello"
        listening = [one.laddr for one in child.net_connections("inet") if one.status == "LISTEN"]
        assert sorted(listening) == sorted([("127.0.0.1", first), ("127.0.0.1", second)])
        os.kill(parent.pid, signal.SIGKILL)
        child.wait(timeout=5)
        # Another one takes its place, and answers until the server ends.
        assert _answer(first) == "hello"
        stand_in = _other(tmp_path, child.pid)
        os.kill(stand_in, signal.SIGKILL)
        assert _answer(first) == "hello"
        last = psutil.Process(_other(tmp_path, stand_in))
        owner.kill()
        owner.wait()
        last.wait(timeout=5)
    finally:
        parent.kill()
        parent.wait()
        if child.is_running():
            child.kill()


FRONT = """
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 1s
frontend http_frontend
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain lf-string "%[req.hdr(x-forwarded-for)] \
%[req.hdr(x-forwarded-proto)]" if {{ path / }}
    default_backend nobody
backend nobody
    server a 127.0.0.1:{closed}
"""


def _other(folder: Path, before: int) -> int:
    """The stand-in's process id, once it is another one."""
    for _ in range(100):
        path = folder / "stand-in.pid"
        found = path.read_text() if path.exists() else ""
        if found not in ("", str(before)):
            return int(found)
        time.sleep(0.1)
    raise AssertionError("no other HAProxy within 10 seconds")


def test_it_speaks_tls_and_says_when_nobody_is_there(tmp_path: Path, binary: str, owner):
    port, closed = haproxy.free_ports(2)
    pair = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    make_certificate(pair)
    pair.check()
    front = haproxy.Front("127.0.0.1", port, str(pair.joined(tmp_path)))
    assert stat.S_IMODE(Path(front.certificate).stat().st_mode) == 0o600
    variables = haproxy.environment(binary, tmp_path, front, owner.pid)
    configuration = Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    configuration.write_text(FRONT.format(port=port, closed=closed))
    launcher = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    process = subprocess.Popen([launcher, "-db", "-f", str(configuration)])
    try:
        trusted = ssl.create_default_context(cafile=pair.certificate)
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted) as client:
            answer = _until_up(client, {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "x"})
            assert answer.text == "127.0.0.1 https"
            nobody = client.get("/v2")
            assert nobody.status_code == 503 and nobody.headers["retry-after"] == "1"
            assert nobody.json() == {"error": "the server restarts; try again"}
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"https://localhost:{port}")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}")
    finally:
        process.kill()
        process.wait()


def _until_up(client: httpx.Client, headers: dict[str, str]) -> httpx.Response:
    for _ in range(100):
        try:
            return client.get("/", headers=headers)
        except httpx.ConnectError:
            time.sleep(0.1)
    raise AssertionError("HAProxy did not answer within 10 seconds")


def _answer(port: int) -> str:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.1)
    raise AssertionError("HAProxy did not answer within 10 seconds")
