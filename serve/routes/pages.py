"""The status page at `/` for a person with a browser, and what it is drawn from."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel

from orchestrator.errors import UnknownNameError
from orchestrator.serve.backend import Pixels
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import check_channels
from orchestrator.serve.monitor.values import plain
from orchestrator.serve.routes.documents import BINARY
from orchestrator.serve.routes.shared import Desk, ask_of, json_answer
from orchestrator.serve.routes.uploads import read_upload

_ASSETS = Path(__file__).parents[1] / "pages"
_SCRIPTS = ("shared.js", "status.js", "try.js")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/png": {"schema": BINARY}, "image/jpeg": {"schema": BINARY}},
    }
}


class Explanation(BaseModel):
    """Where an image speaks for a label (Grad-CAM), and the pixels that the model sees.

    Attributes:
        heat: base64 of uint8[height, width], row by row; 255 speaks most for the label.
        pixels: base64 of uint8[height, width, channels].
    """

    model: str
    version: str
    label: str
    height: int
    width: int
    channels: int
    heat: str
    pixels: str


class PageRoutes:
    """The page, its numbers, and explanations of answers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.get("/", include_in_schema=False, response_class=HTMLResponse)(self.index)
        app.get("/status", tags=["operations"])(self.status)
        app.post(
            "/explain/{name}", response_model=Explanation, tags=["people"], openapi_extra=_BODY
        )(self.explain)

    async def index(self) -> Response:
        """The page: a shell without data, so that it needs no key."""
        text, headers = page()
        return HTMLResponse(text, headers=headers)

    async def status(self) -> Response:
        """What the page shows, as JSON: models, traffic, latency, drift, calibration.

        Of the gateway process that answers; with several, each counts what it has seen itself.
        """
        monitor = self._desk.monitor
        found = plain(monitor.status()) if monitor else {}
        return JSONResponse(found, headers={"Cache-Control": "no-store", **_SAFE})

    async def explain(
        self, request: Request, name: str, label: str = "", version: str = ""
    ) -> Response:
        """Where an image speaks for a label: Grad-CAM of the network in fp32, 0 to 255.

        Without `label` it is the likeliest one; without `version` the one that traffic chooses.
        """
        card = self._desk.card(name, version)
        if card.reads != "image":
            raise RequestError(f"model {name!r} reads texts; only images are explained")
        check_channels(card.shape)
        upload = await read_upload(request, "image")
        item = upload.items[0]
        if len(upload.items) > 1:
            raise RequestError(f"one image is explained at a time, got {len(upload.items)}")
        if isinstance(item, RequestError):
            raise item
        pixels = await self._desk.decoder.decode(item, card.shape)
        number = _label_number(card, label) if label else -1
        if number < 0 or not version:
            ask = ask_of(request, self._desk.settings, version)
            answer = await self._desk.backend.predict(name, pixels[None], ask)
            version = answer.version
            if number < 0:
                number = int(answer.computed.probabilities[0].argmax())
        heat = await self._desk.backend.explain(name, version, pixels, number)
        return json_answer(_explanation(card, version, number, pixels, heat))


def _label_number(card: ModelCard, label: str) -> int:
    if label not in card.label_names:
        raise RequestError(str(UnknownNameError("label", label, card.label_names)))
    return card.label_names.index(label)


def _explanation(
    card: ModelCard, version: str, number: int, pixels: Pixels, heat: Pixels
) -> Explanation:
    channels, height, width = pixels.shape
    return Explanation(
        model=card.name,
        version=version,
        label=card.label_names[number],
        height=height,
        width=width,
        channels=channels,
        heat=_base64(np.rint(heat * 255).astype(np.uint8)),
        pixels=_base64(pixels.transpose(1, 2, 0)),
    )


def _base64(values: Pixels) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@cache
def page() -> tuple[str, dict[str, str]]:
    """The page in one piece, and its headers: nothing runs in it but what we wrote."""
    style = (_ASSETS / "page.css").read_text()
    script = "\n".join((_ASSETS / name).read_text() for name in _SCRIPTS)
    text = (_ASSETS / "index.html").read_text()
    text = text.replace("/*CSS*/", style).replace("/*JS*/", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "X-Frame-Options": "DENY",
        **_SAFE,
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
