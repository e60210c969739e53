"""Append-only JSON lines: metrics and events. A killed process costs at most its last line."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import WorkError
from orchestrator.files import finite, write_bytes


class JsonLines:
    """Appends JSON objects to a file, each line by one write, safely from several threads.

    A line that an earlier process was killed in is cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        _cut_torn_line(self._descriptor)

    def append(self, value: Mapping[str, Any]) -> None:
        """Writes one line; NaN and infinities become null.

        Raises:
            WorkError: when the disk is full; the lines before are left whole.
        """
        line = json.dumps(finite(value), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode()
        with self._lock:
            size = os.fstat(self._descriptor).st_size
            try:
                written = os.write(self._descriptor, data)
                if written < len(data):
                    os.write(self._descriptor, data[written:])
            except OSError as error:
                os.ftruncate(self._descriptor, size)
                raise WorkError(
                    f"could not write {self.path}: {error.strerror}; "
                    "make room there, then continue with --resume"
                ) from error

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


class EventLog:
    """`events.jsonl`: restarts, faults, decisions of `auto`."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def record(self, event: str, message: str, **details: Any) -> None:
        """Writes one event.

        Args:
            event: what kind it is, in a word or two, such as ``checkpoint_damaged``.
            message: a sentence for people.
            details: further JSON values.
        """
        self._lines.append({"time": now(), "event": event, "message": message, **details})

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a file of JSON lines; nothing when the file is not there."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and line.strip():
                yield json.loads(line)


def drop_after(path: Path, step: int) -> int:
    """Removes, atomically, the lines of later steps than `step`, and a torn last line.

    Called before a run goes on from a checkpoint, so that its file ends up the same as that of
    a run that was never interrupted.

    Returns:
        How many lines were removed.
    """
    if not path.exists():
        return 0
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    write_bytes(path, b"".join(kept))
    return len(whole) - len(kept)


def now() -> float:
    """Seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def _cut_torn_line(descriptor: int) -> None:
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
