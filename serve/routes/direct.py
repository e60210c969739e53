"""The busiest route without what FastAPI does for each request.

Solving dependencies and opening exit stacks takes FastAPI longer than a tensor takes to be read. A
handler that wants nothing but the request and the path's parameters is therefore called by
Starlette itself; the route that FastAPI knows goes on describing it in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Route


def answer_directly(app: FastAPI, handler: Callable[..., Awaitable[Response]]) -> None:
    """Puts a plain route before each documented one of a handler.

    Args:
        handler: called with the request, and the path's parameters as text.
    """
    documented = [
        one for one in app.routes if isinstance(one, APIRoute) and one.endpoint == handler
    ]
    app.router.routes[:0] = [_plain(one, handler) for one in documented]


def _plain(documented: APIRoute, handler: Callable[..., Awaitable[Response]]) -> Route:
    async def answer(request: Request) -> Response:
        request.scope["route"] = documented  # by whose path requests are counted
        return await handler(request, **request.path_params)

    return Route(
        documented.path, answer, methods=sorted(documented.methods or ()), include_in_schema=False
    )
