"""The binary tensor data extension: tensors as bytes after the JSON part of a body.

The header `Inference-Header-Content-Length` says where the JSON part ends; after it come the
tensors that have the parameter `binary_data_size`, in their order, without gaps. Numbers are
little-endian and row-major; each BYTES element is its length in 4 bytes and then its content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.messages import InferRequest, parse_request

HEADER = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")
Blobs = dict[str, memoryview]
"""Bytes of each binary input, by its name; views of the body."""


def split_body(body: bytes, header: str | None) -> tuple[InferRequest, Blobs]:
    """Reads a body: its JSON part, and where the bytes of its inputs are.

    Args:
        body: the whole body, not compressed.
        header: value of `HEADER`; None if the whole body is JSON.

    Raises:
        RequestError: if the body is no request, or its parts do not fit its length.
    """
    view = memoryview(body)
    end = len(body) if header is None else _json_length(header, len(body))
    request = parse_request(view[:end])
    blobs: Blobs = {}
    for one in request.inputs:
        size = one.parameters.binary_data_size
        if size is None:
            continue
        if one.data is not None:
            raise RequestError(f"input {one.name!r} has both data and binary_data_size; send one")
        if one.name in blobs:
            raise RequestError(f"input {one.name!r} is there twice")
        if end + size > len(body):
            raise RequestError(
                f"input {one.name!r}: binary_data_size is {size}, but only {len(body) - end} "
                "bytes are left of the body"
            )
        blobs[one.name] = view[end : end + size]
        end += size
    if end != len(body):
        raise RequestError(
            f"the body has {len(body) - end} bytes more than its JSON part ({HEADER}) and the "
            "binary_data_size of its inputs say"
        )
    return request, blobs


def _json_length(header: str, size: int) -> int:
    if not (header.isascii() and header.isdigit() and len(header) < 16 and int(header) <= size):
        raise RequestError(
            f"{HEADER} is the length of the JSON part, 0..{size} here, not {header[:40]!r}"
        )
    return int(header)


def unpack_strings(blob: memoryview, count: int, name: str) -> list[bytes]:
    """The elements of a BYTES tensor.

    Args:
        count: elements that the tensor's shape says.
        name: of the tensor, for errors.

    Raises:
        RequestError: if the bytes hold fewer or more elements.
    """
    found: list[bytes] = []
    at = 0
    while len(found) < count and at + _LENGTH.size <= len(blob):
        (length,) = _LENGTH.unpack_from(blob, at)
        at += _LENGTH.size
        if at + length > len(blob):
            break
        found.append(bytes(blob[at : at + length]))
        at += length
    if len(found) != count or at != len(blob):
        raise RequestError(
            f"input {name!r}: {len(blob)} bytes are not {count} BYTES elements, each its length "
            "in 4 bytes, little-endian, and then its content"
        )
    return found


def pack_strings(strings: Iterable[str]) -> bytes:
    """A BYTES tensor in binary."""
    coded = [one.encode() for one in strings]
    return b"".join(part for one in coded for part in (_LENGTH.pack(len(one)), one))


def join_body(message: bytes, blobs: Sequence[bytes]) -> bytes:
    """A body of a JSON part and its tensors."""
    return b"".join((message, *blobs))
