"""The last answers, for whose labels may still come."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from orchestrator.serve.backend import Seen

_REMEMBERED = 10_000
_ROWS = 16
"""Inputs of one request whose labels may come."""


@dataclass(frozen=True)
class Remembered:
    """What was answered to one request: each input's class, and its probability."""

    version: str
    predicted: tuple[int, ...]
    confidence: tuple[float, ...]


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer whose label came: who gave it, and whether it was right."""

    version: str
    correct: bool


class RecentAnswers:
    """Answers by model and request id; the oldest are forgotten."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Remembered] = OrderedDict()

    def add(self, seen: Seen) -> None:
        """Remembers an answer, unless it has many inputs or did not come over HTTP."""
        if seen.answer is None or seen.trace is None:
            return
        rows = seen.answer.computed.probabilities
        if len(rows) > _ROWS:
            return
        self._kept[seen.name, seen.trace.id] = Remembered(
            seen.version, tuple(rows.argmax(1).tolist()), tuple(rows.max(1).tolist())
        )
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)

    def get(self, name: str, request: str) -> Remembered | None:
        """The answer to a request, if it is still remembered."""
        return self._kept.get((name, request))

    def forget(self, name: str, request: str) -> None:
        """Takes no label for it any more."""
        self._kept.pop((name, request), None)
