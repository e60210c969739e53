"""Requests a second and latency of our server against others, over real HTTP.

Every side has three processes that work: one for HTTP and two that compute; plain FastAPI three
that do both. Ours is there twice: in fp32, its default, and with `serve.precision=auto`, which may
take what changes a probability by less than 0.01. What batches and ONNX Runtime save depends on the
network, most where it is many small operations and least where it is few large ones, so there are
several. Each side is started once, and sides take turns: while one is asked the others are stopped
(SIGSTOP), since even idle servers take time. The client is `wrk` (Debian's package), the same for
all: 32 connections, then one. Each request of a model carries one image of uint8 pixels: ours as
the Open Inference Protocol's binary extension, theirs as the bare body (LitServe's as base64 in
JSON). Run with ``python -m benchmarks.serve_http``; prints JSON.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import machine, spread
from benchmarks.http_servers import COMPUTING
from benchmarks.served import ARCHITECTURES, SHAPE, images, make_ensemble, make_run

NETWORKS: dict[str, dict[str, Any]] = ARCHITECTURES | {
    "mobilenet_v3_small": {"type": "mobilenet_v3_small"},
    "efficientnet_b0": {"type": "efficientnet_b0"},
}
MAIN = "resnet18, width 0.25"
"""Whose ensemble and no-op are measured too."""
CONNECTIONS = 32
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Side:
    """A server, and how it is asked.

    Args:
        name: in the result.
        command: starts it on a port.
        noop: path that computes nothing; empty for none.
        infer: path of an image.
        ours: whether it speaks the Open Inference Protocol.
    """

    def __init__(
        self, name: str, command: Callable[[int], list[str]], noop: str, infer: str, ours: bool
    ) -> None:
        self.name, self._command = name, command
        self.noop, self.infer, self.ours = noop, infer, ours
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Lets the server run, which is stopped before and after."""
        self._signal(signal.SIGCONT)
        yield
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for one in _family(self._process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Starts the server, waits until it answers, and ends it with all its processes."""
        process = subprocess.Popen(
            self._command(self.port),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._until_it_answers(process)
            self._process = process
            self._signal(signal.SIGSTOP)
            yield
        finally:
            _end(process)

    def _until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        path = "/v2/health/ready" if self.ours else self.noop
        while True:
            url = f"http://127.0.0.1:{self.port}{path}"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} did not start")
            time.sleep(0.2)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    family = _family(process)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=20)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def wrk(
    side: Side, path: str, connections: int, seconds: float, script: Path | None
) -> dict[str, Any]:
    """One measurement: requests a second, and latency in milliseconds."""
    more = ["-s", str(script)] if script else []
    command = ["wrk", "-t1", f"-c{connections}", "--latency", "--timeout=20s", *more]
    url = f"http://127.0.0.1:{side.port}{path}"
    with side.awake():
        for duration in (1, seconds):  # the first is what it takes to wake up
            done = subprocess.run(
                [*command, f"-d{duration:g}s", url], capture_output=True, text=True, check=True
            ).stdout
    if "Non-2xx" in done or "Socket errors" in done or " 0 requests in" in done:
        raise SystemExit(f"{side.name} does not answer {path} as it should:\n{done}")
    found: dict[str, Any] = {
        "requests_per_second": float(re.findall(r"Requests/sec:\s+([\d.]+)", done)[0])
    }
    for percent in (50, 99):
        value, unit = re.findall(rf"\n\s+{percent}%\s+([\d.]+)(us|ms|s)\s*\n", done)[0]
        found[f"p{percent}_ms"] = float(value) * _UNITS[unit]
    return found


def script(folder: Path, side: Side) -> Path:
    """A request of one image, as `wrk` takes it."""
    pixels = images(1).tobytes()
    body, headers = pixels, {"Content-Type": "application/octet-stream"}
    if side.name == "litserve":
        body = json.dumps({"image": base64.b64encode(pixels).decode()}).encode()
        headers = {"Content-Type": "application/json"}
    if side.ours:
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "shape": [1, *SHAPE],
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": len(pixels)},
                    }
                ],
                "outputs": [{"name": "probabilities"}],
            }
        ).encode()
        body, headers["Inference-Header-Content-Length"] = head + pixels, str(len(head))
    path = folder / f"{side.name.replace(' ', '-')}.lua"
    escaped = "".join(f"\\{byte:03d}" for byte in body)
    lines = ['wrk.method = "POST"', f'wrk.body = "{escaped}"']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    path.write_text("\n".join(lines))
    return path


def rounds_of(
    sides: list[Side], ask: Callable[[Side], dict[str, Any]], rounds: int
) -> dict[str, dict[str, Any]]:
    """Every side in turn, each round in the other order; ours are compared round by round."""
    found: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in reversed(sides) if number % 2 else sides:
            found[side.name].append(ask(side))
    result: dict[str, dict[str, Any]] = {}
    for side in sides:
        measured = found[side.name]
        result[side.name] = {key: spread([one[key] for one in measured]) for key in measured[0]}
        for ours in (one for one in sides if one.ours and not side.ours):
            ratios = [
                a["requests_per_second"] / b["requests_per_second"]
                for a, b in zip(found[ours.name], measured, strict=True)
            ]
            result[side.name][f"{ours.name} is times"] = spread(ratios)
    return result


def servers(runs: Path, model: list[Path], target: Path) -> dict[str, Side]:
    """Ours in both precisions, plain FastAPI, Ray Serve as it comes, and LitServe if installed."""
    python = [sys.executable, "-m"]

    def others(kind: str) -> Callable[[int], list[str]]:
        folders = [str(one) for one in model]
        return lambda port: [*python, "benchmarks.http_servers", kind, str(port), *folders]

    def own(precision: str) -> Callable[[int], list[str]]:
        serve = [*python, "orchestrator", "serve", str(target), "--runs-dir", str(runs)]
        serve += [f"serve.replicas={COMPUTING}", f"serve.precision={precision}"]
        return lambda port: [*serve, "--port", str(port)]

    infer = f"/v2/models/{target.name}/infer"
    found = {
        "orch": Side("orch", own("fp32"), "/v2/health/live", infer, True),
        "orch, auto": Side("orch, auto", own("auto"), "/v2/health/live", infer, True),
        "fastapi": Side("fastapi", others("fastapi"), "/noop", "/infer", False),
        "ray serve": Side("ray serve", others("serve"), "/noop", "/infer", False),
    }
    try:
        import litserve  # noqa: F401
    except ImportError:
        return found
    return found | {"litserve": Side("litserve", others("litserve"), "/health", "/infer", False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing; `apt-get install wrk` brings it")
    os.environ["OMP_NUM_THREADS"] = "1"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for number, name in enumerate(arguments.networks):
            count = 4 if name == MAIN else 1
            members = [make_run(runs / f"n{number}m{n}", NETWORKS[name], n) for n in range(count)]
            results |= measure(runs, name, members[0], members[:1], arguments)
            if name == MAIN:
                together = make_ensemble(runs / "four", members)
                results |= measure(runs, f"ensemble of four {name}", together, members, arguments)
    found = {"benchmark": "serve_http", "machine": machine()}
    print(json.dumps(found | {"results": results}, indent=2))


def measure(
    runs: Path, name: str, target: Path, folders: list[Path], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One target on every side; the no-op with the main network."""
    sides = servers(runs, folders, target)
    if len(folders) > 1:
        sides = {key: sides[key] for key in ("orch", "orch, auto", "ray serve")}
    scripts = {side.name: script(runs, side) for side in sides.values()}
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for side in sides.values():
            stack.enter_context(side.running())
        everyone = list(sides.values())
        for connections in (CONNECTIONS, 1):
            label = f"{name}, {connections} connections"
            found[label] = rounds_of(
                everyone,
                lambda side, c=connections: wrk(  # type: ignore[misc]
                    side, side.infer, c, arguments.seconds, scripts[side.name]
                ),
                arguments.rounds,
            )
            if name == MAIN:
                found[f"no-op, {connections} connections"] = rounds_of(
                    everyone,
                    lambda side, c=connections: wrk(side, side.noop, c, arguments.seconds, None),  # type: ignore[misc]
                    arguments.rounds,
                )
    return found


if __name__ == "__main__":
    main()
