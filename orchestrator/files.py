"""Files that are either the old version or the new one, never half of either."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """The folder for downloads and what is computed once: `$ORCH_CACHE`, or `~/.cache/orch`."""
    named = os.environ.get("ORCH_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "orch"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds `path`, and holds it; it is released however one ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `path` atomically: a temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        OSError: when the disk is full or the folder is gone; the old file is left whole and
            the temporary one removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not JSON.
    """
    return json.loads(path.read_bytes())


def finite(value: Any) -> Any:
    """The same JSON value with None in the place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(item) for item in value]
    return value


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until a folder's entries (creations, renames, removals) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
