"""Routes for those who run the server: metrics, the repository of versions, traffic.

The repository routes are those of the Open Inference Protocol's model repository extension, which
`tritonclient`'s `load_model`, `unload_model` and `get_model_repository_index` speak.
"""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from orchestrator.serve.routes.shared import Desk


class OperationRoutes:
    """What operators look at."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)(self.metrics)

    async def metrics(self) -> Response:
        """Counts and latencies as Prometheus text."""
        return Response(generate_latest(self._desk.registry), media_type=CONTENT_TYPE_LATEST)
