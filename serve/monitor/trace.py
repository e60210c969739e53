"""One request's way through the gateway: its name, and when it reached which stage."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field

SCOPE_KEY = "orch.trace"
"""Where a request's ASGI scope keeps its trace."""
_RANDOM = random.Random()  # seeded by the kernel, in every process anew
_GIVEN = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id(given: bytes) -> str:
    """The id that a client gave in `X-Request-Id`, or a new one if it gave none that is sound."""
    # The kernel's random numbers take ten times as long, and an id is no secret.
    return given.decode() if _GIVEN.fullmatch(given) else f"{_RANDOM.getrandbits(128):032x}"


@dataclass
class Trace:
    """Times on `time.monotonic`'s clock.

    Attributes:
        id: the request's, as its answer's `X-Request-Id` header says.
        arrived: when its head was there.
        received: when its whole body was; None until then.
    """

    id: str
    arrived: float = field(default_factory=time.monotonic)
    received: float | None = None
