"""The answer to a request that goes no further."""

from __future__ import annotations

from starlette.responses import JSONResponse

from orchestrator.serve.errors import RequestError


def refuse(error: RequestError) -> JSONResponse:
    """`{"error": "…"}` with the error's status and headers."""
    return JSONResponse({"error": error.message}, error.status, dict(error.headers))


def broken() -> JSONResponse:
    """The answer where the server itself failed; what happened is for its log alone."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
