"""Where a replica listens."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """A replica's socket.

    Attributes:
        host, port: its address.
        secret: what a gateway has to say first; every replica makes up its own.
    """

    host: str
    port: int
    secret: str = field(repr=False)
