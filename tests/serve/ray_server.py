"""A real `orch serve` in processes of its own, and clients that ask it all the time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from orchestrator.serve.tls import Certificate
from tests.serve.live import free_ports

MARK = "ORCH_TEST_SERVER"
QUICK = ("serve.executor=torch", "serve.max_batch=8", "serve.standby=false")
"""Nothing is measured at the start, and nothing is started that a test does not ask for."""
RETRIES = 3


def make_certificate(pair: Certificate) -> None:
    """Writes a self-signed certificate for localhost, and its key."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(pair.key), "-out", str(pair.certificate)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *files, *names], check=True, capture_output=True)


@dataclass
class RayServer:
    """A server that answers.

    Attributes:
        output: what it has said so far, line by line.
    """

    process: subprocess.Popen[str]
    client: httpx.Client
    mark: str
    certificate: Certificate | None = None
    output: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def family(self, *words: str) -> list[psutil.Process]:
        """Its processes, by an environment that no other server shares, and words of theirs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marked = process.environ().get(MARK) == self.mark
                title = " ".join([process.name(), *process.cmdline()])
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found += [process] if all(word in title for word in words) else []
        return found

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.client.post(path, json=body)


def trusting(certificate: Certificate | None) -> ssl.SSLContext | bool:
    """What `httpx` verifies a server by."""
    return ssl.create_default_context(cafile=certificate.certificate) if certificate else True


@contextlib.contextmanager
def ray_server(
    runs: Path, *arguments: str, certificate: Certificate | None = None, **environment: str
) -> Iterator[RayServer]:
    """Serves until the block ends."""
    (port,) = free_ports(1)
    mark = f"{runs}-{port}"
    if certificate:
        files = ("--tls-cert", str(certificate.certificate), "--tls-key", str(certificate.key))
        arguments = (*arguments, *files)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "orchestrator", "serve", *arguments),
            *("--port", str(port), "--runs-dir", str(runs)),
        ],
        env=os.environ | {MARK: mark, "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    scheme = "https" if certificate else "http"
    verify = trusting(certificate)
    base = f"{scheme}://localhost:{port}"
    with httpx.Client(base_url=base, timeout=180, verify=verify) as client:
        server = RayServer(process, client, mark, certificate)
        ready = threading.Event()
        reader = threading.Thread(target=_read, args=(server, ready), daemon=True)
        reader.start()
        try:
            while not ready.wait(0.1):
                if process.poll() is not None:
                    reader.join(5)
                    pytest.fail("the server ended: " + "\n".join(server.output))
            yield server
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            for left in server.family():
                with contextlib.suppress(psutil.Error):
                    left.kill()


def _read(server: RayServer, ready: threading.Event) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.output.append(line.rstrip())
        if line.startswith("READY"):
            ready.set()


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        answered: (when, version, seconds) of each answer, on `time.monotonic`'s clock.
        lost: why, of each request that had no answer after all its attempts.
        retried: reasons of further attempts.
    """

    answered: list[tuple[float, str, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    retried: Counter[str] = field(default_factory=Counter)

    @property
    def versions(self) -> Counter[str]:
        return Counter(version for _, version, _ in self.answered)

    def longest_gap(self, since: float, until: float) -> float:
        """The longest time without any answer in between."""
        times = sorted(when for when, _, _ in self.answered if since < when < until)
        return max(b - a for a, b in itertools.pairwise([since, *times, until]))

    def __str__(self) -> str:
        times = sorted(seconds for _, _, seconds in self.answered)
        p50, p99 = (times[int(len(times) * q)] * 1000 for q in (0.5, 0.99))
        return (
            f"{len(times)} answered ({dict(self.versions)}), {len(self.lost)} lost "
            f"{Counter(self.lost).most_common(3)}, retried {dict(self.retried)}, "
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        )


class Load:
    """Clients that ask without a pause, in a thread of their own, and retry as documented.

    After status 503 with Retry-After, and when a connection can't be made or breaks, a request
    is sent again, three times at most, after 1, 2 and 4 times the seconds of Retry-After (or 1).
    """

    def __init__(self, server: RayServer, name: str, body: dict[str, object], clients: int) -> None:
        self._url, self._body = f"{server.url}/v2/models/{name}/infer", body
        self._clients, self._stop = clients, threading.Event()
        self._verify = trusting(server.certificate)
        self.tally = Tally()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Tally:
        self._thread.start()
        self.answered(20)
        return self.tally

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(120)
        print(self.tally)

    def answered(self, more: int, seconds: float = 180) -> None:
        """Waits for further answers."""
        wanted, end = len(self.tally.answered) + more, time.monotonic() + seconds
        while len(self.tally.answered) < wanted:
            assert time.monotonic() < end, f"no further answers: {self.tally}"
            time.sleep(0.02)

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=30, verify=self._verify) as client:
            await asyncio.gather(*(self._client(client) for _ in range(self._clients)))

    async def _client(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            await self._request(client)

    async def _request(self, client: httpx.AsyncClient) -> None:
        start, why = time.monotonic(), ""
        for attempt in range(RETRIES + 1):
            wait = 1.0
            try:
                answer = await client.post(self._url, json=self._body)
            except httpx.TransportError as error:
                why = type(error).__name__
            else:
                if answer.status_code == 200:
                    now = time.monotonic()
                    version = answer.json()["model_version"]
                    self.tally.answered.append((now, version, now - start))
                    return
                why = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    break
                wait = float(answer.headers["retry-after"])
            if attempt < RETRIES:
                self.tally.retried[why] += 1
                await asyncio.sleep(wait * 2**attempt)
        self.tally.lost.append(why)
