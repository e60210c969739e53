"""What a client of the server can do wrong."""

from __future__ import annotations

from orchestrator.errors import UserError


class RequestError(UserError):
    """A request can't be answered as it is.

    Args:
        message: the rule, the value and the way out, for the client.
        status: the HTTP status that says so.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, int]]:
        # Crosses process borders between a replica and the gateway.
        return type(self), (self.message, self.status)
