"""Who may change what is served."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from orchestrator.serve.errors import RequestError
from orchestrator.serve.guards.keys import digest_key, given_key, is_known
from orchestrator.serve.routes.shared import GatewaySettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_may_change(request: Request, settings: GatewaySettings) -> None:
    """Lets only those who run the server change what it serves.

    With an admin key, whoever sends it. Without one, and only where the server listens on
    loopback, any program on this machine, but no web page that somebody looks at there.

    Raises:
        RequestError: 401 without a key, 403 with another one or where changes are off.
    """
    if settings.admin_digests:
        given = given_key(request.headers)
        if not is_known(given, settings.admin_digests):
            nothing = given == digest_key("")
            raise RequestError(
                "send the admin key as `Authorization: Bearer KEY`; others may ask models, but "
                "not change what is served",
                401 if nothing else 403,
            )
        return
    if not settings.open_control:
        raise RequestError(
            "what is served can't be changed over HTTP; start the server with --admin-key-file",
            403,
        )
    # A page of another site could send this from a browser here, by name or by a name of its
    # own that leads to this machine (DNS rebinding).
    origin = request.headers.get("origin")
    hosts = [request.url.hostname, urlsplit(origin).hostname if origin else "localhost"]
    if any(host not in LOOPBACK for host in hosts):
        raise RequestError("what is served is changed from this machine only", 403)
