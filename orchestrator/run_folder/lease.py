"""One writer at a time: the lease on a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import psutil

from orchestrator.errors import RunFolderError

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A holder that can't be asked is given up this long after its last heartbeat."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        machine: the boot and the process namespace; a pid means something only within them.
        process_started: seconds since 1970, so that a pid used again is not taken for its
            former owner.
        token: differs for every lease that was ever taken.
    """

    host: str
    machine: str
    pid: int
    process_started: float
    token: str

    @classmethod
    def current(cls) -> Holder:
        """This process, with a fresh token."""
        started = psutil.Process().create_time()
        return cls(socket.gethostname(), _machine(), os.getpid(), started, secrets.token_hex(8))


class Lease:
    """The right to write a run folder, kept alive by a heartbeat until it is released.

    The file is written only under a file lock, so of two processes that want a free or a stale
    lease exactly one gets it. A file system without locks still refuses whoever comes later.

    Args:
        path: the lease's file; its folder must exist.
        wait: whether a holder on another machine, which can't be asked, is waited for: until its
            heartbeat is stale, or shows that it is alive.

    Raises:
        RunFolderError: naming the holder, if it is alive.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self.holder = Holder.current()
        self.taken_from = self._take(wait)
        """The dead holder that this lease was taken over from, if there was one."""
        self._released = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._beat.start()

    def check(self) -> None:
        """Makes sure that the lease is still ours.

        Raises:
            RunFolderError: if another process took it over, as after a long suspension.
        """
        holder = _read(self.path)
        if holder is None or holder.token != self.holder.token:
            by = f" by {_describe(holder)}" if holder else ""
            raise RunFolderError(
                f"{self.path.parent} was taken over{by} while this process was suspended; "
                "this one stops, so that only one writes"
            )

    def release(self) -> None:
        """Gives the lease up; a second call does nothing."""
        if self._released.is_set():
            return
        self._released.set()
        self._beat.join()
        with contextlib.suppress(OSError), locked(self.path) as descriptor:
            holder = _parse(os.pread(descriptor, 65536, 0))
            if holder is not None and holder.token == self.holder.token:
                os.ftruncate(descriptor, 0)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _take(self, wait: bool) -> Holder | None:
        """Writes the lease; returns the dead holder that it was taken from."""
        until = time.monotonic() + STALE_S + HEARTBEAT_S
        first: tuple[str, int] | None = None
        while True:
            late = time.monotonic() > until
            with locked(self.path) as descriptor:
                before = _parse(os.pread(descriptor, 65536, 0))
                if before is None or not _alive(before, self.path):
                    self._write(descriptor)
                    return before
                sign = before.token, os.fstat(descriptor).st_mtime_ns
            silent = before.machine != _machine() and sign == (first or sign)
            if late or not (wait and silent):
                raise RunFolderError(
                    f"{self.path.parent} is being written by {_describe(before)}; "
                    "wait for it to end, or choose name=…"
                )
            if first is None:
                _log.warning(
                    f"{self.path.parent} was written last by {_describe(before)}; "
                    f"waiting up to {STALE_S:.0f} s to see whether it still is"
                )
            first = sign
            time.sleep(HEARTBEAT_S / 5)

    def _write(self, descriptor: int) -> None:
        text = json.dumps({"format": 1, **asdict(self.holder)}) + "\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.fsync(descriptor)

    def _keep_alive(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            # A folder that is gone for a moment (a remounted share) is no reason to stop.
            with contextlib.suppress(OSError):
                holder = _read(self.path)
                if holder is not None and holder.token == self.holder.token:
                    os.utime(self.path)


def lease_holder(path: Path) -> Holder | None:
    """Who writes the run folder now, or None when nobody alive does."""
    holder = _read(path)
    return holder if holder is not None and _alive(holder, path) else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Holds a file's lock, and gives its descriptor; a file system without locks gives none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path: Path) -> Holder | None:
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return None


def _parse(data: bytes) -> Holder | None:
    # Torn content means that its writer was killed while it held the lock: nobody's.
    try:
        value = json.loads(data)
        value.pop("format")
        return Holder(**value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _alive(holder: Holder, path: Path) -> bool:
    if holder.machine != _machine():
        return _heartbeat_age(path) < STALE_S
    try:
        started = psutil.Process(holder.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    same = abs(started - holder.process_started) < 2
    # Setting the clock shifts start times, so another process is asked for its heartbeat too.
    return same or (holder.pid != os.getpid() and _heartbeat_age(path) < STALE_S)


def _heartbeat_age(path: Path) -> float:
    # Both times come from the file system's clock, which need not agree with this machine's.
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.clock")
    try:
        probe.touch()
        reference = probe.stat().st_mtime
    except OSError:
        reference = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return reference - path.stat().st_mtime


def _describe(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}"


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
