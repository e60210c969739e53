"""What every kind of route needs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fastapi import Request, Response
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from orchestrator.config.serving import RequestLog, ServeConfig
from orchestrator.errors import UnknownNameError
from orchestrator.serve.backend import Ask, Backend
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.control import Control
from orchestrator.serve.control.link import Link
from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import Decoder, ImageLimits
from orchestrator.serve.monitor.monitor import Monitor
from orchestrator.serve.monitor.trace import SCOPE_KEY


@dataclass(frozen=True)
class GatewaySettings:
    """What the routes obey; travels to the gateways' processes.

    Attributes:
        key_digests: sha256 of each API key; none means that no key is asked for.
        max_body: bytes of one request.
        deadline: seconds that a request may take where it names none; None for any.
        models_root: only folders below it may be loaded over HTTP; empty lets none.
        admin_digests: sha256 of each key that may change what is served.
        open_control: whether programs on this machine may do so without one.
        receive_seconds: how long a client may take to send a request.
        requests_per_second: of one client, with bursts of twice as many; None for any.
        waiting: samples of files that are held decoded at most.
        log: keeps a sample of requests and answers.
    """

    key_digests: tuple[str, ...] = ()
    max_body: int = 32 * 2**20
    images: ImageLimits = field(default_factory=ImageLimits)
    deadline: float | None = None
    models_root: str = ""
    admin_digests: tuple[str, ...] = ()
    open_control: bool = False
    receive_seconds: float = 30.0
    requests_per_second: float | None = None
    log: RequestLog | None = None
    waiting: int = 1024

    @classmethod
    def of(
        cls, config: ServeConfig, key_digests: Sequence[str] = (), models_root: str = ""
    ) -> GatewaySettings:
        """What the `serve:` section asks of the gateways."""
        limits = config.limits
        max_body = int(limits.body_mb * 2**20)
        pixels = int(limits.megapixels * 10**6)
        return cls(
            key_digests=tuple(key_digests),
            max_body=max_body,
            images=ImageLimits(max_body, pixels, limits.decode_seconds),
            deadline=None if config.deadline_ms is None else config.deadline_ms / 1000,
            models_root=models_root,
            receive_seconds=limits.receive_seconds,
            requests_per_second=limits.requests_per_second,
            log=config.log and config.log.absolute(),
            waiting=limits.waiting,
        )


@dataclass(frozen=True)
class Desk:
    """What routes work with.

    Attributes:
        backend: answers.
        control, link: what is served, and its changes; None where it can't be changed.
        monitor: what is known of requests so far.
    """

    backend: Backend
    settings: GatewaySettings
    registry: CollectorRegistry
    control: Control | None = None
    link: Link | None = None
    monitor: Monitor | None = None

    @cached_property
    def decoder(self) -> Decoder:
        """Decodes uploads; one for all routes, so that they share its limits."""
        return Decoder(self.settings.images)

    def card(self, name: str, version: str = "") -> ModelCard:
        """The card of a model's version; of the one added last where none is named.

        Raises:
            RequestError: if there is none (404), or if what is served is not known yet (503).
        """
        if self.link is not None and self.link.table.generation == 0:
            raise RequestError("the server is starting; try again", 503)
        versions = self.backend.cards.get(name)
        if not versions:
            raise RequestError(str(UnknownNameError("model", name, self.backend.cards)), 404)
        if version and version not in versions:
            raise RequestError(str(UnknownNameError(f"version of {name}", version, versions)), 404)
        return versions[version] if version else list(versions.values())[-1]


def json_answer(message: BaseModel, status: int = 200) -> Response:
    """An answer that pydantic wrote itself: FastAPI would walk tensors once more in Python."""
    return Response(
        message.model_dump_json(exclude_none=True), status, media_type="application/json"
    )


def ask_of(
    request: Request, settings: GatewaySettings, version: str = "", timeout: int | None = None
) -> Ask:
    """What a request's headers ask for.

    `X-Orch-Client` names who always gets the same version; `X-Orch-Deadline-Ms` says within how
    many milliseconds the answer is due.

    Args:
        timeout: microseconds within which the request's body says that the answer is due.

    Raises:
        RequestError: if the deadline is no number above 0.
    """
    sticky = request.headers.get("x-orch-client", "")[:256]
    text = request.headers.get("x-orch-deadline-ms", "")
    try:
        seconds = float(text) / 1000 if text else settings.deadline
    except ValueError:
        seconds = 0.0
    if seconds is not None and not 0 < seconds < 3600:
        raise RequestError(
            f"X-Orch-Deadline-Ms is a number of milliseconds above 0, not {text[:40]!r}"
        )
    if timeout is not None:
        seconds = min(timeout / 1e6, math.inf if seconds is None else seconds)
    due = None if seconds is None else time.monotonic() + seconds
    return Ask(version, sticky, due, request.scope.get(SCOPE_KEY))
