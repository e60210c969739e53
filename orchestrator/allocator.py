"""How the C library hands memory out."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""
_NEVER = 2**31 - 1
_LARGEST = 2**25
"""Bytes of the largest block that is kept, the most that all releases of glibc take. Larger ones
would leave gaps that nothing fits into."""


def keep_freed_memory() -> None:
    """Keeps what is freed for the next allocation, instead of giving it back to the system.

    A training step frees its activations, and the next one takes as many again: glibc gives blocks
    of that size back at once, and the kernel then clears every page anew, which takes a fifth of a
    small network's step. Does nothing where the C library is another one.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)


def give_freed_memory_back() -> None:
    """Gives all that is free back to the system now, as after the end of a run."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
