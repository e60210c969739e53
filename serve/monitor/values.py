"""What is told to people, as JSON values."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.serve.control.table import Event


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and time in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def event(one: Event) -> dict[str, str]:
    """A change of what is served."""
    return {"time": moment(one.time), "model": one.model, "message": one.message}


def plain(value: Any) -> Any:
    """A JSON value without numpy's numbers, NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
