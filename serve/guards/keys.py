"""API keys: how a server keeps them, and who gets through."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.errors import UserError
from orchestrator.serve.errors import RequestError
from orchestrator.serve.guards.refusals import refuse

OPEN_PATHS = ("/", "/v2/health/live", "/v2/health/ready")
"""Probes carry no key; nor does the page, which holds no data and asks for a key itself."""
MIN_KEY = 16
CLIENT = "orch.client"
"""Where a request's scope says whose key it carries."""


def digest_key(key: str) -> str:
    """The sha256 of an API key: what the server keeps in the key's place."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Digests of the keys in a file: one a line, blank lines and `#` lines skipped.

    Raises:
        UserError: if the file can't be read, has no key, or has one that is easily guessed.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {path} can't be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path} has no key; write one a line")
    if any(len(key) < MIN_KEY for key in keys):
        raise UserError(
            f"--api-key-file {path}: a key has {MIN_KEY} characters at least; "
            "`openssl rand -hex 24` makes one"
        )
    return tuple(digest_key(key) for key in keys)


class KeyGuard:
    """Answers 401 unless a request carries one of the keys.

    The key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
    """

    def __init__(self, app: ASGIApp, digests: Sequence[str]) -> None:
        self._app, self._digests = app, tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request with a key through."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = given_key(Headers(scope=scope))
            if not is_known(given, self._digests):
                await refuse(_NO_KEY)(scope, receive, send)
                return
            scope[CLIENT] = given
        await self._app(scope, receive, send)


_NO_KEY = RequestError(
    "send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    401,
    {"WWW-Authenticate": "Bearer"},
)


def is_known(given: str, digests: Sequence[str]) -> bool:
    """Whether a key's digest is one of these."""
    # Every key is compared, each in constant time, so that time tells nothing.
    return sum(hmac.compare_digest(given, digest) for digest in digests) > 0


def given_key(headers: Headers) -> str:
    """The digest of the key that a request carries; of an empty one if it carries none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return digest_key(token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
