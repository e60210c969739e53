"""Answers that are compressed for clients that ask for it."""

from __future__ import annotations

import asyncio
import zlib

_LEAST = 4096
"""Bytes below which compressing costs more than sending."""
_LEVEL = 1
_WINDOWS = {"gzip": 31, "deflate": 15}


def chosen_encoding(accept: str, size: int) -> str | None:
    """How an answer of a size is compressed: gzip, deflate, or not at all.

    Args:
        accept: the request's `Accept-Encoding`.
    """
    if size < _LEAST:
        return None
    named = [one.replace(" ", "").lower() for one in accept.split(",")]
    wanted = {one.partition(";")[0] for one in named if not one.endswith((";q=0", ";q=0.0"))}
    return next((one for one in _WINDOWS if one in wanted), None)


async def compress(body: bytes, encoding: str) -> bytes:
    """The body in an encoding, made beside the event loop."""
    return await asyncio.to_thread(_compressed, body, _WINDOWS[encoding])


def _compressed(body: bytes, window: int) -> bytes:
    compressor = zlib.compressobj(_LEVEL, wbits=window)
    return compressor.compress(body) + compressor.flush()
