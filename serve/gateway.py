"""The HTTP application, over any backend. No Ray here: tests run all of it in-process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from orchestrator.serve.backend import Backend, NoAnswerError
from orchestrator.serve.control.control import Control, LoadError
from orchestrator.serve.control.link import Link
from orchestrator.serve.errors import RequestError, retry_headers
from orchestrator.serve.guards.bodies import BodyGuard, BodyLimits
from orchestrator.serve.guards.keys import KeyGuard
from orchestrator.serve.guards.leaving import LeavingClients
from orchestrator.serve.guards.rates import RateLimit
from orchestrator.serve.monitor.metrics import RequestMetrics
from orchestrator.serve.monitor.monitor import Monitor
from orchestrator.serve.routes.direct import DirectRoutes, documented
from orchestrator.serve.routes.documents import describe
from orchestrator.serve.routes.inference import InferenceRoutes
from orchestrator.serve.routes.labels import LabelRoutes
from orchestrator.serve.routes.operations import OperationRoutes
from orchestrator.serve.routes.pages import PageRoutes
from orchestrator.serve.routes.people import PeopleRoutes
from orchestrator.serve.routes.repository import RepositoryRoutes
from orchestrator.serve.routes.shared import Desk, GatewaySettings


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
    registry = CollectorRegistry()
    table = None if link is None else lambda: link.table
    monitor = Monitor(backend, registry, settings.log, table)
    app = FastAPI(
        title="orch",
        version=version("orch"),
        description="Trained models over HTTP: the Open Inference Protocol V2, and image files.",
        lifespan=_closing(monitor, lifespan),
        # Looking whether anybody wants it reads the environment at every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.monitor = monitor
    desk = Desk(backend, settings, registry, control, link, monitor)
    inference = InferenceRoutes(desk)
    inference.add_to(app)
    for routes in (PeopleRoutes, OperationRoutes, RepositoryRoutes, LabelRoutes, PageRoutes):
        routes(desk).add_to(app)
    _add_error_answers(app)
    describe(app, keys=bool(settings.key_digests), rates=settings.requests_per_second is not None)
    direct = documented(app, inference.infer, inference.live)
    app.add_middleware(DirectRoutes, routes=direct, errors=_REFUSALS, refuse=_refused)
    app.add_middleware(LeavingClients)
    app.add_middleware(BodyGuard, limits=BodyLimits(settings.max_body, settings.receive_seconds))
    if settings.requests_per_second is not None:
        app.add_middleware(RateLimit, rate=settings.requests_per_second)
    if settings.key_digests:
        app.add_middleware(KeyGuard, digests=settings.key_digests + settings.admin_digests)
    app.add_middleware(
        RequestMetrics, registry=registry, backend=backend, statuses=monitor.statuses
    )
    return app


def _closing(monitor: Monitor, lifespan: Lifespan[FastAPI] | None) -> Lifespan[FastAPI]:
    """What runs beside the application, and the end of the monitor's threads after it."""

    @contextlib.asynccontextmanager
    async def beside(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app) if lifespan else contextlib.nullcontext():
            yield
        await asyncio.to_thread(monitor.close)

    return beside


_REFUSALS = (RequestError, NoAnswerError, LoadError)


def _refused(error: Any) -> JSONResponse:
    """The answer to a request that was refused, by one of `_REFUSALS`."""
    headers = getattr(error, "headers", None) or retry_headers(error.status)
    return JSONResponse({"error": error.message}, error.status, headers)


def _add_error_answers(app: FastAPI) -> None:
    """Every error becomes `{"error": "…"}`."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return _refused(error)

    for kind in _REFUSALS:
        app.exception_handler(kind)(refused)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"error": "; ".join(problems)}, 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
