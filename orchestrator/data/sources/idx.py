"""The IDX format of MNIST and its kin: a magic number, big-endian dimensions, then bytes.

The magic number is two zero bytes, the element type (8: unsigned byte) and the number of
dimensions; see the description on the MNIST page (LeCun, Cortes and Burges).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from orchestrator.errors import DataError

_UNSIGNED_BYTE = 8


def read(path: Path) -> bytes:
    """A file's content, unpacked when its name ends in ``.gz``.

    Raises:
        DataError: naming the file, if it is truncated, damaged or can't be opened.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}); remove it or replace it") from error


def parse(data: bytes, dimensions: int, name: object) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: uint8 of its own shape, read-only.

    Args:
        dimensions: how many it must have: 3 for images, 1 for labels.
        name: the file, for messages.

    Raises:
        DataError: if the header or the length is wrong.
    """
    length = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if len(data) < length or data[:4] != magic:
        raise DataError(
            f"{name} is not an IDX file of unsigned bytes with {dimensions} dimension(s): it must "
            f"start with {magic.hex(' ')}, but starts with {data[:4].hex(' ') or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:length])
    expected = length + int(np.prod(shape, dtype=object))
    if len(data) != expected or 0 in shape:
        raise DataError(
            f"{name} is damaged: its header promises shape {shape}, so {expected} bytes, "
            f"but it has {len(data)}"
        )
    return np.frombuffer(data, np.uint8, offset=length).reshape(shape)
