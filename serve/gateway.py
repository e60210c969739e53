"""The HTTP routes, over any backend. No Ray here: tests run the whole application in-process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from orchestrator.errors import UnknownNameError
from orchestrator.serve import protocol
from orchestrator.serve.backend import Backend, NoAnswerError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.errors import RequestError
from orchestrator.serve.guards import BodyLimit, KeyGuard, RequestMetrics
from orchestrator.serve.images import ImageLimits, decode

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": protocol.ErrorMessage} for status in (400, 401, 404, 413, 500, 503)
}
_ANY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": protocol.InferRequest.model_json_schema()}},
    }
}


@dataclass(frozen=True)
class GatewaySettings:
    """What the routes obey.

    Attributes:
        key_digests: sha256 of each API key; none means that no key is asked for.
        max_body: bytes of one request.
    """

    key_digests: Sequence[str] = ()
    max_body: int = 32 * 2**20
    images: ImageLimits = field(default_factory=ImageLimits)


def create_app(backend: Backend, settings: GatewaySettings) -> FastAPI:
    """The application: every route of the server, and its guards."""
    app = FastAPI(
        title="orch",
        version=version("orch"),
        description="Trained models over HTTP: the Open Inference Protocol V2, and image files.",
        responses=_REFUSALS,
    )
    registry = CollectorRegistry()
    gateway = Gateway(backend, settings, registry)
    gateway.add_routes(app)
    _add_error_answers(app)
    app.add_middleware(BodyLimit, limit=settings.max_body)
    if settings.key_digests:
        app.add_middleware(KeyGuard, digests=settings.key_digests)
    app.add_middleware(RequestMetrics, registry=registry, models=list(backend.cards))
    return app


class Gateway:
    """The routes' handlers."""

    def __init__(
        self, backend: Backend, settings: GatewaySettings, registry: CollectorRegistry
    ) -> None:
        self._backend, self._settings, self._registry = backend, settings, registry

    def add_routes(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.get("/", include_in_schema=False, response_class=HTMLResponse)(self.index)
        app.get("/metrics", tags=["operations"])(self.metrics)
        app.get("/v2", response_model=protocol.ServerMetadata, tags=["v2"])(self.server)
        health = {"response_model": protocol.Ready, "response_model_exclude_none": True}
        app.get("/v2/health/live", tags=["v2"], **health)(self.live)  # type: ignore[arg-type]
        app.get("/v2/health/ready", tags=["v2"], **health)(self.server_ready)  # type: ignore[arg-type]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{model_version}"):
            app.get(path, response_model=protocol.ModelMetadata, tags=["v2"])(self.model)
            app.get(f"{path}/ready", response_model=protocol.ModelReady, tags=["v2"])(
                self.model_ready
            )
            app.post(
                f"{path}/infer",
                response_model=protocol.InferResponse,
                tags=["v2"],
                openapi_extra=_INFER_BODY,
            )(self.infer)
        app.post(
            "/predict/{name}",
            response_model=protocol.PredictResponse,
            tags=["people"],
            openapi_extra=_ANY_BODY,
        )(self.predict)

    async def index(self, request: Request) -> HTMLResponse:
        """A page that says which models there are and how to ask them."""
        return HTMLResponse(_index_page(list(self._backend.cards.values()), str(request.base_url)))

    async def metrics(self) -> Response:
        """Counts and latencies as Prometheus text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def server(self) -> Response:
        """Name, version and extensions of this server."""
        return _json(protocol.ServerMetadata(name="orch", version=version("orch"), extensions=[]))

    async def live(self) -> Response:
        """Whether the process answers."""
        return _json(protocol.Ready(live=True))

    async def server_ready(self) -> Response:
        """Whether every model would answer now; status 503 if not."""
        states = await asyncio.gather(*map(self._backend.ready, self._backend.cards))
        return _json(protocol.Ready(ready=all(states)), 200 if all(states) else 503)

    async def model(self, name: str, model_version: str = "") -> Response:
        """Inputs and outputs of a model."""
        return _json(_metadata(self._card(name, model_version)))

    async def model_ready(self, name: str, model_version: str = "") -> Response:
        """Whether a model would answer now; status 503 if not."""
        card = self._card(name, model_version)
        if not await self._backend.ready(name):
            raise NoAnswerError(f"model {card.name!r} is not ready; try again", status=503)
        return _json(protocol.ModelReady(name=card.name))

    async def infer(self, request: Request, name: str, model_version: str = "") -> Response:
        """Probabilities of a batch of images, as the Open Inference Protocol V2 says."""
        card = self._card(name, model_version)
        asked = protocol.parse_request(await request.body())
        outputs = protocol.wanted_outputs(asked)
        pixels = protocol.read_pixels(asked, card.shape)
        probabilities = await self._backend.predict(name, pixels)
        return _json(
            protocol.InferResponse(
                model_name=card.name,
                model_version=card.version,
                id=asked.id,
                outputs=protocol.write_outputs(probabilities, card.label_names, outputs),
            )
        )

    async def predict(
        self, request: Request, name: str, top: Annotated[int, Query(ge=1, le=1000)] = 5
    ) -> Response:
        """The likeliest labels of one PNG or JPEG file, sent as the body or as a form's file."""
        card = self._card(name)
        data = await _uploaded(request)
        start = time.perf_counter()
        pixels = await asyncio.to_thread(decode, data, card.shape, self._settings.images)
        probabilities = await self._backend.predict(name, pixels[None])
        return _json(
            protocol.PredictResponse(
                model=card.name,
                predictions=protocol.best_labels(probabilities[0], card.label_names, top),
                ms=round((time.perf_counter() - start) * 1000, 3),
            )
        )

    def _card(self, name: str, model_version: str = "") -> ModelCard:
        card = self._backend.cards.get(name)
        if card is None:
            raise RequestError(str(UnknownNameError("model", name, self._backend.cards)), 404)
        if model_version not in ("", card.version):
            raise RequestError(
                f"model {name!r} has version {card.version!r}, not {model_version!r}", 404
            )
        return card


async def _uploaded(request: Request) -> bytes:
    """The file of a request: its body, or the first file of its form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    raise RequestError("the form has no file; `curl -F image=@shoe.png` sends one")


def _json(message: BaseModel, status: int = 200) -> Response:
    # Dumped by pydantic itself: FastAPI would walk the tensors once more in Python.
    return Response(
        message.model_dump_json(exclude_none=True), status, media_type="application/json"
    )


def _metadata(card: ModelCard) -> protocol.ModelMetadata:
    return protocol.ModelMetadata(
        name=card.name,
        versions=[card.version],
        platform="orch_ensemble" if card.members > 1 else "orch_model",
        inputs=[
            protocol.TensorMetadata(name=protocol.INPUT, datatype="FP32", shape=[-1, *card.shape])
        ],
        outputs=[
            protocol.TensorMetadata(
                name=protocol.PROBABILITIES, datatype="FP32", shape=[-1, len(card.label_names)]
            ),
            protocol.TensorMetadata(name=protocol.LABEL, datatype="BYTES", shape=[-1]),
        ],
        parameters={
            "labels": list(card.label_names),
            "pixels": "FP32 in 0..1 or UINT8 in 0..255; the server applies mean and std",
            "members": card.members,
        },
    )


def _add_error_answers(app: FastAPI) -> None:
    """Every error becomes `{"error": "…"}`."""

    @app.exception_handler(RequestError)
    @app.exception_handler(NoAnswerError)
    async def refused(request: Request, error: RequestError | NoAnswerError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"error": "; ".join(problems)}, 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed; its log says why"}, 500)


def _index_page(cards: Sequence[ModelCard], base: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(card.name)}</td><td>{' × '.join(map(str, card.shape))}</td>"
        f"<td>{len(card.label_names)}</td><td>{card.members}</td></tr>"
        for card in cards
    )
    url = escape(f"{base}predict/{cards[0].name}")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>orch</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:48rem;margin:3rem auto;padding:0 1rem}"
        "td,th{padding:.2rem 1.5rem .2rem 0;text-align:left}"
        "pre{background:#f4f4f4;padding:.7rem;overflow:auto}</style>"
        "<h1>Models</h1><table><tr><th>name<th>channels × height × width<th>labels<th>networks"
        f"{rows}</table><p>Send a PNG or JPEG file:<pre>curl --data-binary @image.png {url}</pre>"
        "<p>Clients of the Open Inference Protocol V2 find the models under <code>/v2</code>. "
        "<a href=/docs>Every route</a>, <a href=/metrics>metrics</a>.</html>"
    )
