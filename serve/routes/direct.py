"""The busiest routes without what FastAPI does for each request.

Solving dependencies, opening exit stacks and looking through all routes takes FastAPI longer than a
tensor takes to be read. A handler that wants nothing but the request and the path's parameters is
therefore called before FastAPI is asked; the route that FastAPI knows goes on describing it in the
OpenAPI document, and answers what does not fit here, such as other methods.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[..., Awaitable[Response]]


class DirectRoutes:
    """Answers some of an application's routes; passes all others on.

    Args:
        app: answers the others.
        routes: what `documented` found.
        errors: exceptions of handlers that are answers too.
        refuse: makes an answer of one.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[APIRoute],
        errors: tuple[type[Exception], ...],
        refuse: Callable[[Exception], Response],
    ) -> None:
        self._app, self._errors, self._refuse = app, errors, refuse
        self._routes = [(_pattern(one), one.methods or set(), one) for one in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "http":
            for pattern, methods, route in self._routes:
                found = pattern.match(scope["path"])
                if found and scope["method"] in methods:
                    # By these, requests are counted.
                    scope["route"], scope["path_params"] = route, found.groupdict()
                    await self._answer(route.endpoint, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _answer(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await handler(Request(scope, receive, send), **scope["path_params"])
        except self._errors as error:
            response = self._refuse(error)
        await response(scope, receive, send)


def documented(app: FastAPI, *handlers: Handler) -> list[APIRoute]:
    """The routes that an application has for handlers."""
    routes = [one for one in app.routes if isinstance(one, APIRoute)]
    return [one for one in routes if any(one.endpoint == handler for handler in handlers)]


def _pattern(route: APIRoute) -> re.Pattern[str]:
    pattern, _, _ = compile_path(route.path)
    return pattern
