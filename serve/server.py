"""`orch serve` from start to end: checks, a Ray of its own, READY, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import psutil
import torch

from orchestrator.config.serving import Replicas, ServeConfig
from orchestrator.errors import ResourceError, UserError, WorkError
from orchestrator.serve.control.checks import check_alike, named_versions
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import Event, ModelEntry, Started, Table, VersionEntry
from orchestrator.serve.executors.load import prepare
from orchestrator.serve.predictor import load_any
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.targets import Served
from orchestrator.serve.tls import Certificate

LOOPBACK = ("127.0.0.1", "localhost", "::1")
READY_SECONDS = 60
_ENVIRONMENT = {
    # Makes Ray take 127.0.0.1 for this machine's address, as it does on systems where it knows no
    # clusters: its agents, which take jobs, and its metrics listen there only. Its gRPC ports ask
    # for a token.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray's workers give way to everything else, so that a machine at work stays usable; requests
    # must not wait for that.
    "RAY_worker_niceness": "0",
}
_LOOK_SECONDS = 2.0
"""How often the operator is asked what has happened."""


@dataclass(frozen=True)
class Door:
    """Where the server listens, and who gets in.

    Attributes:
        key_digests, admin_digests: see `GatewaySettings`.
        insecure: whether other machines may ask without a key.
        certificate: of HTTPS; None for HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_digests: Sequence[str] = ()
    admin_digests: Sequence[str] = ()
    insecure: bool = False
    certificate: Certificate | None = None

    @property
    def url(self) -> str:
        """The base of every URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"

    def check(self) -> None:
        """Finds what is wrong before anything is started.

        Raises:
            UserError: if it is open to everyone, or certificate and key do not fit.
            ResourceError: if the port is taken.
        """
        check_host(self.host, self.key_digests, self.insecure)
        if self.certificate:
            self.certificate.check()
        check_port(self.host, self.port)

    def settings(self, config: ServeConfig, models_root: Path) -> GatewaySettings:
        """What the gateways obey."""
        settings = GatewaySettings.of(config, self.key_digests, str(models_root.resolve()))
        open_control = self.host in LOOPBACK and not self.key_digests
        return replace(settings, admin_digests=tuple(self.admin_digests), open_control=open_control)


@dataclass(frozen=True)
class Listening:
    """A server that answers: its base URL, and what it offers."""

    url: str
    table: Table


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


def check_models(served: Sequence[Served], config: ServeConfig) -> None:
    """Loads each model once, so that what is wrong with one is said before anything starts.

    Raises:
        RunFolderError, WeightsError: if a model can't be loaded.
        UserError: if versions of a model differ in shape or labels, or traffic names others.
    """
    models: dict[str, ModelEntry] = {}
    for one in served:
        started = Started(load_any(one.root, one.name, version=one.version).card, 0)
        entry = models.get(one.name, ModelEntry())
        try:
            check_alike(entry, one.spec, started)
        except LoadError as error:
            raise UserError(str(error)) from None
        versions = {**entry.versions, one.version: VersionEntry(one.spec, started)}
        models[one.name] = replace(entry, versions=versions)
    for name, rule in config.traffic.items():
        if name not in models:
            raise UserError(f"serve.traffic.{name} is of no model that is served: {[*models]}")
        unknown = sorted(named_versions(rule.model_dump()) - models[name].versions.keys())
        if unknown:
            raise UserError(
                f"serve.traffic.{name} names versions {unknown}, but {[*models[name].versions]} "
                f"are served; add {name}@{unknown[0]}=TARGET"
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
    door: Door,
    *,
    models_root: Path,
    on_ready: Callable[[Listening], None],
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    """Serves until SIGINT or SIGTERM; then ends every process that it started.

    Called once in a process, from its main thread: Ray Serve keeps its first settings.

    Args:
        served: the models.
        config: replicas of each model, and what each of them gets.
        door: where it listens, and who gets in.
        models_root: the runs' folder, from which more may be loaded while it serves.
        on_ready: called once, when every model has answered over HTTP.
        on_event: called whenever what is served was changed, or a rule has decided something.

    Raises:
        UserError, ResourceError: as `Door.check`, `check_models`, `check_gpus` and `prepare` say.
        KeyboardInterrupt: if it is stopped before it is ready.
        WorkError: if Ray or a replica does not start.
    """
    door.check()
    check_models(served, config)
    each = config.replicas.max if isinstance(config.replicas, Replicas) else config.replicas
    copies = len(served) * each
    check_gpus(copies * config.gpus)
    for one in served:
        prepare(one.root, one.name, one.version, config)
    stop = _Stop()
    stop.install()
    with _scratch() as folder, _children_ended():
        os.environ.update(_ENVIRONMENT)
        # Ray and Ray Serve read their environment once, at import.
        from orchestrator.serve import app

        settings = door.settings(config, models_root)
        specs = [one.spec for one in served]
        address = app.Address(door.host, door.port, door.certificate)
        try:
            app.start(
                app.build_application(specs, config, settings, folder / "served.json", address),
                cpus=copies * config.cpus,
                gpus=copies * config.gpus,
                temporary=folder / "ray",
            )
            stop.install()  # Ray has put its own in the place of one.
            wait_until_ready(door)
            stop.starting = False
            table = app.look() or Table()
            on_ready(Listening(door.url, table))
            _tell_events(stop.requested, app.look, table, on_event)
        finally:
            stop.starting = False
            app.stop()


def _tell_events(
    stopped: threading.Event,
    look: Callable[[], Table | None],
    known: Table,
    on_event: Callable[[Event], None],
) -> None:
    """Waits until the server is to stop, and tells what happens meanwhile."""
    while not stopped.wait(_LOOK_SECONDS):
        table = look()
        if table is None:
            continue
        for event in table.events:
            if event not in known.events:
                on_event(event)
        known = table


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


def wait_until_ready(door: Door) -> None:
    """Asks the server itself until every model is ready.

    Raises:
        WorkError: if it is not within a minute.
    """
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(door.host, door.host)
    end = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = _connection(near, door)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        if time.monotonic() > end:
            raise WorkError(f"the server did not become ready within {READY_SECONDS} seconds")
        time.sleep(0.1)


def _connection(host: str, door: Door) -> http.client.HTTPConnection:
    if door.certificate is None:
        return http.client.HTTPConnection(host, door.port, timeout=5)
    # It asks itself, by an address that the certificate need not name, and sends no secret.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, door.port, timeout=5, context=context)


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
