"""What every kind of route needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import Request, Response
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from orchestrator.errors import UnknownNameError
from orchestrator.serve.backend import Ask, Backend
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.control import Control
from orchestrator.serve.control.link import Link
from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import ImageLimits


@dataclass(frozen=True)
class GatewaySettings:
    """What the routes obey; travels to the gateways' processes.

    Attributes:
        key_digests: sha256 of each API key; none means that no key is asked for.
        max_body: bytes of one request.
        deadline: seconds that a request may take where it names none; None for any.
        models_root: only folders below it may be loaded over HTTP; empty lets none.
    """

    key_digests: tuple[str, ...] = ()
    max_body: int = 32 * 2**20
    images: ImageLimits = field(default_factory=ImageLimits)
    deadline: float | None = None
    models_root: str = ""


@dataclass(frozen=True)
class Desk:
    """What routes work with.

    Attributes:
        backend: answers.
        control, link: what is served, and its changes; None where it can't be changed.
    """

    backend: Backend
    settings: GatewaySettings
    registry: CollectorRegistry
    control: Control | None = None
    link: Link | None = None

    def card(self, name: str, version: str = "") -> ModelCard:
        """The card of a model's version; of the one added last where none is named.

        Raises:
            RequestError: if there is none (404).
        """
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


def ask_of(request: Request, settings: GatewaySettings, version: str = "") -> Ask:
    """What a request's headers ask for.

    `X-Orch-Client` names who always gets the same version; `X-Orch-Deadline-Ms` says within how
    many milliseconds the answer is due.

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
    return Ask(version, sticky, None if seconds is None else time.monotonic() + seconds)
