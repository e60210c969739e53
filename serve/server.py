"""`orch serve` from start to end: checks, a Ray of its own, READY, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import torch

from orchestrator.config.serving import Replicas, ServeConfig
from orchestrator.errors import ResourceError, UserError, WorkError
from orchestrator.serve import haproxy
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.images import ImageLimits
from orchestrator.serve.predictor import load_any
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.targets import Served

LOOPBACK = ("127.0.0.1", "localhost", "::1")
READY_SECONDS = 60


@dataclass(frozen=True)
class Listening:
    """A server that answers: its base URL, and what it offers."""

    url: str
    cards: Sequence[ModelCard]


def check_host(host: str, key_digests: Sequence[str], insecure: bool) -> None:
    """Refuses to answer to the whole network without API keys.

    Raises:
        UserError: naming the ways out.
    """
    if host in LOOPBACK or key_digests or insecure:
        return
    raise UserError(
        f"--host {host} lets other machines ask the models; add --api-key-file FILE, or "
        "--insecure-any-host if the network is trusted"
    )


def check_port(host: str, port: int) -> None:
    """Makes sure that the port is free before anything is started.

    Raises:
        ResourceError: naming the port and the way out.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: connections of an ended server that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise ResourceError(
                f"port {port} on {host} can't be used ({error.strerror}); end what listens there "
                f"(`ss -ltnp 'sport = :{port}'` names it) or choose another with --port"
            ) from None


def run(
    served: Sequence[Served],
    config: ServeConfig,
    *,
    host: str,
    port: int,
    key_digests: Sequence[str],
    on_ready: Callable[[Listening], None],
) -> None:
    """Serves until SIGINT or SIGTERM; then ends every process that it started.

    Called once in a process, from its main thread: Ray Serve keeps its first settings.

    Args:
        served: the models.
        config: replicas of each model, and what each of them gets.
        key_digests: see `GatewaySettings`.
        on_ready: called once, when every model has answered over HTTP.

    Raises:
        ResourceError: if the port is taken, or GPUs are missing.
        KeyboardInterrupt: if it is stopped before it is ready.
        RunFolderError, WeightsError: if a model can't be loaded.
        WorkError: if Ray or a replica does not start.
    """
    check_port(host, port)
    # Loaded once here, so that what is wrong with a model is said before Ray starts.
    cards = [load_any(one.root, one.name, version=one.version).card for one in served]
    specs = [VersionSpec(one.name, one.version, str(one.root.resolve())) for one in served]
    each = config.replicas.max if isinstance(config.replicas, Replicas) else config.replicas
    copies = len(cards) * each
    check_gpus(copies * config.gpus)
    stop = _Stop()
    stop.install()
    with _scratch() as folder, _children_ended():
        binary = haproxy.available()
        if binary:
            os.environ.update(haproxy.environment(binary, folder))
        # Ray Serve reads its environment once, at import.
        from orchestrator.serve import app

        limits = config.limits
        max_body = int(limits.body_mb * 2**20)
        settings = GatewaySettings(
            key_digests=tuple(key_digests),
            max_body=max_body,
            images=ImageLimits(max_body, int(limits.megapixels * 10**6)),
            deadline=None if config.deadline_ms is None else config.deadline_ms / 1000,
        )
        try:
            app.start(
                app.build_application(specs, config, settings, folder / "served.json"),
                cpus=copies * config.cpus,
                gpus=copies * config.gpus,
                address=app.Address(host, port),
                # Ray opens its folder to everyone; what HAProxy is started from stays ours.
                temporary=folder / "ray",
            )
            stop.install()  # Ray has put its own in the place of one.
            wait_until_ready(host, port)
            stop.starting = False
            on_ready(Listening(f"http://{_in_url(host)}:{port}", cards))
            stop.requested.wait()
        finally:
            stop.starting = False
            app.stop()


def check_gpus(gpus: float) -> None:
    """Makes sure that the machine has the GPUs that all replicas need together.

    Raises:
        ResourceError: if it has fewer.
    """
    found = torch.cuda.device_count()
    if gpus > found:
        raise ResourceError(
            f"the replicas need {gpus:g} GPUs, this machine has {found}; lower serve.gpus or "
            "serve.replicas"
        )


def wait_until_ready(host: str, port: int) -> None:
    """Asks the server itself, through its proxy, until every model is ready.

    Raises:
        WorkError: if it is not within a minute.
    """
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    end = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(near, port, timeout=5)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        if time.monotonic() > end:
            raise WorkError(f"the server did not become ready within {READY_SECONDS} seconds")
        time.sleep(0.1)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Stop:
    """SIGINT and SIGTERM: while the server starts they interrupt it, later they end its wait."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.starting = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.requested.set()
        if self.starting:
            raise KeyboardInterrupt

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A new folder with a short path, for sockets; kept, with its logs, if the server fails."""
    folder = Path(tempfile.mkdtemp(prefix="orch-", dir="/tmp"))
    try:
        yield folder
    except WorkError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _children_ended() -> Iterator[None]:
    """Ends, by their ids, processes that were started within and are still alive at the end."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    started: set[psutil.Process] = set()
    try:
        yield
    finally:
        started = set(me.children(recursive=True)) - before
        _, alive = psutil.wait_procs(started, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
