"""Downloads that are retried, checked, and either whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from orchestrator.data.sources import idx
from orchestrator.errors import DataError
from orchestrator.files import write_bytes

TIMEOUT_S = 20
ATTEMPTS = 3


def fetch(url: str, path: Path, sha256: str, *, pause_s: float = 1.0) -> None:
    """Downloads a file to `path`, unless it is there already and is the right one.

    Args:
        sha256: of the file's unpacked content.
        pause_s: wait before the second attempt; it doubles with each one.

    Raises:
        DataError: after three attempts, with the last one's reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _matches(path, sha256):
        return
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            # Written under another name: what has not been checked is never taken for the file.
            unchecked = path.with_name(f".unchecked.{path.name}")
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                write_bytes(unchecked, answer.read())
            if _matches(unchecked, sha256):
                unchecked.replace(path)
                return
            unchecked.unlink()
            reason = "the content does not match its checksum"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            reason = str(error)
    raise DataError(f"{url}: {reason} ({ATTEMPTS} attempts)")


def _matches(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(idx.read(path)).hexdigest() == sha256
    except DataError:
        return False
