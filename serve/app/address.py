"""Where the server listens."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.serve.tls import Certificate


@dataclass(frozen=True)
class Address:
    """Where the server listens; with a certificate it speaks HTTPS."""

    host: str
    port: int
    certificate: Certificate | None = None
