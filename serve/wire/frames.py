"""Batches and answers as bytes.

A frame is a head of JSON and the bytes of its arrays, one after another, behind the lengths of
both (little-endian, 4 and 8 bytes). Nothing is unpickled: whoever reaches a replica's port can
make it compute, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError

Array = npt.NDArray[Any]
_LENGTHS = struct.Struct("<IQ")
_MOST_HEAD = 2**28
BUFFER = 2**20
"""Bytes that a reader takes in ahead: a batch of small images."""
_TYPES: dict[str, np.dtype[Any]] = {"|u1": np.dtype("u1"), "<f4": np.dtype("<f4")}
"""What arrays consist of."""


class FrameError(Exception):
    """Bytes that are no frame."""


@dataclass(frozen=True)
class Frame:
    """What one side tells the other.

    Attributes:
        head: JSON values; of each array its type and shape.
        body: the arrays' bytes.
    """

    head: dict[str, Any]
    body: bytes = b""

    def arrays(self) -> list[Array]:
        """The arrays, without a copy.

        Raises:
            FrameError: if type, shape and length do not fit.
        """
        found, start = [], 0
        for kind, shape in self.head.get("arrays", ()):
            dtype = _TYPES.get(kind)
            count = math.prod(shape)
            if dtype is None or count < 0 or start + count * dtype.itemsize > len(self.body):
                raise FrameError(f"no array of {kind!r} and shape {shape} is in the frame")
            found.append(np.frombuffer(self.body, dtype, count, start).reshape(shape))
            start += count * dtype.itemsize
        return found


def write_frame(head: Mapping[str, Any], arrays: Sequence[Array] = ()) -> bytes:
    """A frame's bytes."""
    parts = [np.ascontiguousarray(one) for one in arrays]
    described = [(one.dtype.str, one.shape) for one in parts]
    text = to_json({**head, "arrays": described} if described else dict(head))
    body = [one.data.cast("B") if one.size else b"" for one in parts]
    size = sum(one.nbytes for one in parts)
    return b"".join((_LENGTHS.pack(len(text), size), text, *body))


async def read_frame(reader: asyncio.StreamReader, most: int) -> Frame:
    """The next frame.

    Args:
        most: bytes of arrays that are taken.

    Raises:
        FrameError: if the bytes are no frame, or one that is too large.
        asyncio.IncompleteReadError, OSError: if the connection ended.
    """
    head_length, length = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if head_length > _MOST_HEAD or length > most:
        raise FrameError(f"a frame of {head_length + length:,} bytes is not taken")
    try:
        head = json.loads(await reader.readexactly(head_length))
    except ValueError:
        raise FrameError("a frame's head is no JSON") from None
    if not isinstance(head, dict):
        raise FrameError("a frame's head is no JSON object")
    return Frame(head, await reader.readexactly(length) if length else b"")


# --- a batch -----------------------------------------------------------------------------------


def write_batch(number: int, requests: Sequence[Inputs], seconds: float | None) -> bytes:
    """The frame that asks for a batch.

    Args:
        number: that the answer will carry.
        requests, seconds: see `Pool.compute`.
    """
    head: dict[str, Any] = {"number": number, "seconds": seconds}
    arrays = [one for one in requests if isinstance(one, np.ndarray)]
    if len(arrays) < len(requests):
        head["texts"] = [list(one) for one in requests]
        arrays = []
    return write_frame(head, arrays)


def read_batch(frame: Frame) -> tuple[int, list[Inputs], float | None]:
    """Number, requests and seconds of a batch.

    Raises:
        FrameError: if it is none.
    """
    head = frame.head
    requests: list[Inputs] = head["texts"] if "texts" in head else [*frame.arrays()]
    if not requests or "number" not in head:
        raise FrameError("the frame is no batch")
    return head["number"], requests, head.get("seconds")


def write_answers(number: int, answers: Sequence[Computed | NoAnswerError]) -> bytes:
    """The frame that answers a batch."""
    said: list[list[Any]] = []
    arrays: list[Array] = []
    for one in answers:
        if isinstance(one, NoAnswerError):
            said.append([one.message, one.status])
        else:
            said.append([one.members, one.late])
            arrays.append(one.probabilities)
    return write_frame({"number": number, "answers": said}, arrays)


def read_answers(frame: Frame) -> list[Computed | NoAnswerError]:
    """The answers of a batch, in the order of its requests.

    Raises:
        FrameError: if the frame holds none.
    """
    arrays = iter(frame.arrays())
    found: list[Computed | NoAnswerError] = []
    try:
        for first, second in frame.head["answers"]:
            if isinstance(first, str):
                found.append(NoAnswerError(first, second))
            else:
                found.append(Computed(next(arrays), first, second))
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise FrameError(f"the frame holds no answers ({error!r})") from None
    return found
