from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from orchestrator.serve import haproxy

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


def test_only_binds_without_an_address_are_moved():
    text = "  bind :80\n    bind *:81\nbind 0.0.0.0:82\n  bind [::1]:83\n  server a 1.2.3.4:84\n"
    expected = text.replace(" :80", " 127.0.0.1:80").replace("*:81", "127.0.0.1:81")
    assert haproxy.on_loopback(text) == expected
    assert haproxy.on_loopback(expected) == expected


def test_free_ports_differ():
    assert len(set(haproxy.free_ports(5))) == 5


@pytest.fixture
def binary() -> str:
    found = haproxy.available()
    if found is None:
        pytest.skip("Ray Serve has no HAProxy on this platform")
    return found


def test_it_listens_on_loopback_and_ends_with_its_parent(tmp_path: Path, binary: str):
    variables = haproxy.environment(binary, tmp_path)
    first, second = haproxy.free_ports(2)
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
    finally:
        parent.kill()
        parent.wait()
        if child.is_running():
            child.kill()


def _answer(port: int) -> str:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.1)
    raise AssertionError("HAProxy did not answer within 10 seconds")
