"""The OpenAPI document: what FastAPI can't read off the routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orchestrator.serve.guards.keys import OPEN_PATHS
from orchestrator.serve.protocol.messages import ErrorMessage, InferRequest
from orchestrator.serve.protocol.people import PredictRequest
from orchestrator.serve.protocol.repository import (
    IndexRequest,
    LoadRequest,
    Reward,
    TrafficRequest,
    UnloadRequest,
)

_BODIES = (
    InferRequest,
    PredictRequest,
    ErrorMessage,
    IndexRequest,
    LoadRequest,
    UnloadRequest,
    TrafficRequest,
    Reward,
)
"""Models of bodies that the routes read themselves."""
_REFS = "#/components/schemas/{model}"
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
ASK_HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Orch-Client",
        "in": "header",
        "description": "Requests with the same value get the same version.",
        "schema": {"type": "string", "maxLength": 256},
    },
    {
        "name": "X-Orch-Deadline-Ms",
        "in": "header",
        "description": "Milliseconds within which the answer is due.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 3_600_000},
    },
]
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ANYWHERE = {500: "The server failed", 503: "It can't answer now; another attempt may succeed"}
_WITH_BODY = {
    400: "The request is wrong",
    408: "It took too long to come",
    413: "It is too large",
    415: "It is of a type, or compressed in a way, that is not read",
}
_ASKING = {429: "Too many wait", 504: "Time ran out"}
_RETRY = {"description": "Seconds to wait before another attempt.", "schema": {"type": "string"}}
_ID = {"description": "The request's own, or a new one.", "schema": {"type": "string"}}


def ref(model: type[BaseModel]) -> dict[str, str]:
    """Where the document describes a model."""
    return {"$ref": _REFS.format(model=model.__name__)}


def describe(app: FastAPI, keys: bool, rates: bool) -> None:
    """Makes the document say which statuses, bodies and headers routes and guards give.

    Args:
        keys: whether requests need an API key.
        rates: whether clients are held to a rate.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, keys, rates)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, keys: bool, rates: bool) -> dict[str, Any]:
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, described = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template=_REFS
    )
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(described["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if keys:
        components["securitySchemes"] = _KEYS
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation, keys, rates)
    return made


def _complete(path: str, method: str, operation: dict[str, Any], keys: bool, rates: bool) -> None:
    responses = operation["responses"]
    # Parameters that are wrong get 400, as everything else that is.
    wrong = responses.pop("422", None) is not None or "parameters" in operation
    guarded = path not in OPEN_PATHS
    refusals = dict(_ANYWHERE)
    if wrong:
        refusals[400] = _WITH_BODY[400]
    if "requestBody" in operation:
        refusals |= _WITH_BODY
    if "{name}" in path:
        refusals[404] = "There is no such model or version"
    if path.endswith("/infer") or path.startswith(("/predict/", "/explain/")):
        refusals |= _ASKING
    if rates and guarded:
        refusals[429] = "The client, or all of them together, ask too often"
    if keys and guarded:
        refusals[401] = "No API key, or a wrong one"
        operation["security"] = [{name: []} for name in _KEYS]
    for status, why in refusals.items():
        content = {"application/json": {"schema": ref(ErrorMessage)}}
        responses.setdefault(str(status), {"description": why, "content": content})
    for status, response in responses.items():
        headers = response.setdefault("headers", {})
        headers["X-Request-Id"] = _ID
        if status in ("429", "503"):
            headers["Retry-After"] = _RETRY
