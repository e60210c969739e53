"""A sample of requests and answers as Parquet files, for later labels and training.

A folder for each model, and in it files that each appear whole or not at all. Once their `label`
column is filled in, `data.source.type=parquet` reads them.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import queue
import random
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.serving import RequestLog
from orchestrator.files import write_bytes
from orchestrator.serve.backend import Inputs, Seen
from orchestrator.serve.cards import ModelCard

_LOG = logging.getLogger(__name__)
_WAITING = 1024
_PER_REQUEST = 32
"""Rows of one request that are kept at most."""
_HELD = 128 * 2**20
"""Bytes that wait to be written at most."""
_END_SECONDS = 10


@dataclass(frozen=True)
class Rotation:
    """When a file is full.

    Attributes:
        rows, bytes: of one file, before compression.
        seconds: after its first row.
    """

    rows: int = 4096
    bytes: int = 32 * 2**20
    seconds: float = 300.0


@dataclass(frozen=True)
class _Item:
    seen: Seen
    inputs: Inputs
    card: ModelCard
    at: float
    size: int


@dataclass
class _Buffer:
    rows: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    since: float = field(default_factory=time.monotonic)


class RequestLogger:
    """Writes in a thread of its own; whatever happens there, answers go on.

    Args:
        config: folder and share of the requests.
        rotation: see `Rotation`.
    """

    def __init__(self, config: RequestLog, rotation: Rotation | None = None) -> None:
        self._folder = Path(config.folder)
        self._share, self._rotation = config.sample, rotation or Rotation()
        self._queue: queue.Queue[_Item | None] = queue.Queue(_WAITING)
        # Each is changed by one thread alone: bytes that were put in, and taken out again.
        self._put_bytes = self._taken_bytes = 0
        self._buffers: dict[str, _Buffer] = {}
        self._thread: threading.Thread | None = None
        self._draw = random.Random()
        self._broken = False
        self.written = 0
        """Rows in whole files."""
        self.dropped = 0
        """Rows lost because the disk was full, or slower than the requests."""

    def put(self, seen: Seen, card: ModelCard) -> None:
        """Keeps an answered request if the lot falls on it."""
        if self._draw.random() >= self._share:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="orch-log", daemon=True)
            self._thread.start()
        inputs = seen.inputs
        if len(inputs) > _PER_REQUEST:
            # A copy, so that the rest of a large request is not held.
            inputs = inputs[:_PER_REQUEST]
            inputs = inputs.copy() if isinstance(inputs, np.ndarray) else inputs
        size = _bytes(inputs)
        try:
            if self._put_bytes - self._taken_bytes + size > _HELD:
                raise queue.Full
            self._queue.put_nowait(_Item(seen, inputs, card, time.time(), size))
            self._put_bytes += size
        except queue.Full:
            self.dropped += len(inputs)

    def close(self) -> None:
        """Writes what is left, and ends the thread."""
        if self._thread is not None:
            # A disk that hangs does not hold the server's end up.
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_END_SECONDS)
                self._thread.join(_END_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=min(1.0, self._rotation.seconds))
            except queue.Empty:
                self._rotate()
                continue
            if item is None:
                break
            try:
                self._keep(item)
            except Exception:
                self.dropped += len(item.inputs)
                _LOG.exception("a request could not be logged")
            self._taken_bytes += item.size
            self._rotate()
        for name in list(self._buffers):
            self._write(name)

    def _keep(self, item: _Item) -> None:
        buffer = self._buffers.setdefault(item.seen.name, _Buffer())
        buffer.rows.extend(_rows(item))
        buffer.size += item.size

    def _rotate(self) -> None:
        limit, now = self._rotation, time.monotonic()
        for name, one in list(self._buffers.items()):
            full = len(one.rows) >= limit.rows or one.size >= limit.bytes
            if full or now - one.since >= limit.seconds:
                self._write(name)

    def _write(self, name: str) -> None:
        rows = self._buffers.pop(name).rows
        try:
            folder = self._folder / re.sub(r"[^A-Za-z0-9._-]|^\.+", "_", name)
            folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            pq.write_table(_table(rows), buffer, compression="zstd")
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
            file = f"{stamp}-{os.getpid()}-{secrets.token_hex(4)}.parquet"
            write_bytes(folder / file, buffer.getvalue())
        except (OSError, pa.ArrowException, MemoryError) as error:
            self.dropped += len(rows)
            if not self._broken:
                _LOG.warning("serve.log: rows are lost, %s can't be written: %s", name, error)
            self._broken = True
            return
        self.written += len(rows)
        self._broken = False


def _rows(item: _Item) -> list[dict[str, Any]]:
    seen, card = item.seen, item.card
    assert seen.answer is not None
    probabilities = seen.answer.computed.probabilities[:_PER_REQUEST]
    moment = datetime.datetime.fromtimestamp(item.at, datetime.UTC)
    common = {
        "time": moment,
        "request": seen.trace.id if seen.trace else "",
        "model": seen.name,
        "version": seen.version,
    }
    return [
        {
            **common,
            "place": place,
            **given,
            "probabilities": row,
            "prediction": card.label_names[int(row.argmax())],
            "label": None,
        }
        for place, (row, given) in enumerate(
            zip(probabilities, _inputs(item.inputs, card), strict=True)
        )
    ]


def _inputs(inputs: Inputs, card: ModelCard) -> Sequence[dict[str, Any]]:
    """What goes into the columns of the input: `text`, or `image` and its `shape` (H, W, C)."""
    if not isinstance(inputs, np.ndarray):
        return [{"text": str(text)} for text in inputs]
    pixels_NCHW = inputs
    if pixels_NCHW.dtype != np.uint8:
        pixels_NCHW = np.rint(np.clip(pixels_NCHW, 0, 1) * 255).astype(np.uint8)
    channels, height, width = card.shape
    return [
        {"image": image.transpose(1, 2, 0).ravel(), "shape": [height, width, channels]}
        for image in pixels_NCHW
    ]


def _bytes(inputs: Inputs) -> int:
    if isinstance(inputs, np.ndarray):
        return inputs.nbytes
    return sum(len(text) for text in inputs)


_TYPES = {
    "time": pa.timestamp("us", tz="UTC"),
    "request": pa.string(),
    "model": pa.string(),
    "version": pa.string(),
    "place": pa.int32(),
    "text": pa.string(),
    "image": pa.list_(pa.uint8()),
    "shape": pa.list_(pa.int32()),
    "probabilities": pa.list_(pa.float32()),
    "prediction": pa.string(),
    "label": pa.string(),
}


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    names = [name for name in _TYPES if name in rows[0]]
    columns = {name: pa.array([row[name] for row in rows], _TYPES[name]) for name in names}
    return pa.table(columns)
