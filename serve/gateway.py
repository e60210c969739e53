"""The HTTP application, over any backend. No Ray here: tests run all of it in-process."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from orchestrator.serve import protocol
from orchestrator.serve.backend import Backend, NoAnswerError
from orchestrator.serve.control.control import Control, LoadError
from orchestrator.serve.control.link import Link
from orchestrator.serve.errors import RequestError
from orchestrator.serve.guards import BodyLimit, KeyGuard, RequestMetrics
from orchestrator.serve.routes.inference import InferenceRoutes
from orchestrator.serve.routes.operations import OperationRoutes
from orchestrator.serve.routes.pages import PageRoutes
from orchestrator.serve.routes.people import PeopleRoutes
from orchestrator.serve.routes.shared import Desk, GatewaySettings

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": protocol.ErrorMessage} for status in (400, 401, 404, 413, 429, 500, 503, 504)
}
_AGAIN = (429, 503)
"""Statuses after which another attempt may succeed."""


def create_app(
    backend: Backend,
    settings: GatewaySettings,
    control: Control | None = None,
    link: Link | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """The application: every route of the server, and its guards.

    Args:
        backend: answers.
        control, link: what is served, and its changes; without them nothing can be changed.
        lifespan: what runs beside it.
    """
    app = FastAPI(
        title="orch",
        version=version("orch"),
        description="Trained models over HTTP: the Open Inference Protocol V2, and image files.",
        responses=_REFUSALS,
        lifespan=lifespan,
    )
    registry = CollectorRegistry()
    desk = Desk(backend, settings, registry, control, link)
    for routes in (InferenceRoutes, PeopleRoutes, OperationRoutes, PageRoutes):
        routes(desk).add_to(app)
    _add_error_answers(app)
    app.add_middleware(BodyLimit, limit=settings.max_body)
    if settings.key_digests:
        app.add_middleware(KeyGuard, digests=settings.key_digests)
    app.add_middleware(RequestMetrics, registry=registry, backend=backend)
    return app


def _add_error_answers(app: FastAPI) -> None:
    """Every error becomes `{"error": "…"}`."""

    @app.exception_handler(RequestError)
    @app.exception_handler(NoAnswerError)
    @app.exception_handler(LoadError)
    async def refused(
        request: Request, error: RequestError | NoAnswerError | LoadError
    ) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status in _AGAIN else None
        return JSONResponse({"error": error.message}, error.status, headers)

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
