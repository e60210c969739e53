"""Looking after many open requests by one timer: one for each would cost more than they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Sweeper(Generic[T]):
    """Looks at everything that is open, again and again, as long as there is anything.

    Args:
        seconds: between two looks.
        look: called with each one, and the seconds since it was first added.
    """

    def __init__(self, seconds: float, look: Callable[[T, float], None]) -> None:
        self._seconds, self._look = seconds, look
        self._open: dict[T, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, one: T) -> None:
        """Looks at it from now on, if it does not yet; called on an event loop."""
        loop = asyncio.get_running_loop()
        self._open.setdefault(one, loop.time())
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self._seconds, self._sweep, loop)

    def discard(self, one: T) -> None:
        """Looks at it no more."""
        self._open.pop(one, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for one, since in list(self._open.items()):
            self._look(one, now - since)
        if self._open:
            loop.call_later(self._seconds, self._sweep, loop)
        else:
            self._loop = None
