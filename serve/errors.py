"""What a client of the server can do wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from orchestrator.errors import UserError

E = TypeVar("E", bound=BaseException)


class RequestError(UserError):
    """A request can't be answered as it is.

    Args:
        message: the rule, the value and the way out, for the client.
        status: the HTTP status that says so.
        headers: of the answer; `Retry-After` is there where another attempt may succeed.
    """

    def __init__(
        self, message: str, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status = message, status
        self.headers = {**retry_headers(status), **(headers or {})}

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, int, Mapping[str, str]]]:
        # Crosses process borders between a replica and the gateway.
        return type(self), (self.message, self.status, self.headers)


def retry_headers(status: int) -> dict[str, str]:
    """What tells clients to come back, for statuses after which another attempt may succeed."""
    return {"Retry-After": "1"} if status in (429, 503) else {}


def without_frames(error: E) -> E:
    """The same error, without the frames that it passed through and what they hold.

    For one that is kept: what was sent and decoded stays in memory as long as they do.
    """
    error.__context__ = None
    return error.with_traceback(None)
