from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import uvloop


@pytest.fixture(scope="session", autouse=True)
def server_s_event_loop() -> Iterator[None]:
    """Coroutines run on the event loop that Ray gives the servers, which is not asyncio's own."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    yield
    asyncio.set_event_loop_policy(None)


@pytest.fixture
def grey() -> np.ndarray:
    """uint8[12, 12] of many values."""
    return np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
