"""Inputs of an infer request as arrays and texts, checked.

A model of images has one input, `image`: FP32 or FP16 [B, C, H, W] with pixels scaled to 0..1, or
UINT8 [B, C, H, W] with pixels 0..255; mean and std are applied by the server. A model of texts has
one input, `text`: BYTES [B], UTF-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.serve.backend import Inputs, Pixels
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.binary import Blobs, unpack_strings
from orchestrator.serve.protocol.messages import InferRequest, RequestInput

IMAGE, TEXT = "image", "text"
MAX_ROWS = 1024
MAX_TEXT = 2**20
"""Bytes of one text in UTF-8."""
_SLACK = 1e-3
"""How far beyond 0..1 rounding may carry a pixel."""
_TYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
}


def read_inputs(
    request: InferRequest, blobs: Blobs, card: ModelCard, max_rows: int = MAX_ROWS
) -> Inputs:
    """Takes the inputs out of a request.

    Args:
        request: the parsed JSON part.
        blobs: bytes of the inputs that came in binary.
        card: what the model reads.
        max_rows: images or texts that one request may hold.

    Returns:
        uint8[B, C, H, W] in 0..255 or float32[B, C, H, W] in 0..1, a view of the body where that
        is possible; or B texts.

    Raises:
        RequestError: when name, datatype, shape, number of elements or values are wrong.
    """
    wanted = TEXT if card.reads == "text" else IMAGE
    names = [tensor.name for tensor in request.inputs]
    if names != [wanted]:
        raise RequestError(f"the model has one input, {wanted!r}; got {names[:8]}")
    tensor = request.inputs[0]
    if tensor.parameters.shared_memory_region is not None:
        raise RequestError(
            f"input {wanted!r}: there is no shared memory; send data, or bytes and binary_data_size"
        )
    blob = blobs.get(wanted)
    if blob is None and tensor.data is None:
        raise RequestError(f"input {wanted!r} has neither data nor binary_data_size")
    if card.reads == "text":
        return _texts(tensor, blob, max_rows)
    return _pixels(tensor, blob, card.shape, max_rows)


# --- texts ---------------------------------------------------------------------------------


def _texts(tensor: RequestInput, blob: memoryview | None, max_rows: int) -> list[str]:
    if tensor.datatype != "BYTES":
        raise RequestError(f"input {TEXT!r}: datatype must be BYTES, got {tensor.datatype[:40]!r}")
    if len(tensor.shape) != 1:
        raise RequestError(f"input {TEXT!r}: shape must be [B], got {tensor.shape}")
    rows = tensor.shape[0]
    _check_rows(rows, max_rows, TEXT)
    if blob is not None:
        return [read_text(one, TEXT) for one in unpack_strings(blob, rows, TEXT)]
    texts = [one for one in tensor.data or () if isinstance(one, str)]
    if len(texts) != len(tensor.data or ()):
        raise RequestError(f"input {TEXT!r}: data must be strings")
    if len(texts) != rows:
        raise RequestError(
            f"input {TEXT!r}: shape {tensor.shape} needs {rows} texts, got {len(texts)}"
        )
    return [read_text(one.encode(), TEXT) for one in texts]


def read_text(data: bytes, what: str) -> str:
    """A text from its bytes.

    Args:
        what: names it in errors.

    Raises:
        RequestError: if it is not UTF-8, or too long (413).
    """
    if len(data) > MAX_TEXT:
        raise RequestError(
            f"{what}: one text may have {MAX_TEXT:,} bytes, this one has {len(data):,}", status=413
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{what}: byte {error.start} is no UTF-8; texts are UTF-8") from None


# --- pixels --------------------------------------------------------------------------------


def _pixels(
    tensor: RequestInput, blob: memoryview | None, shape: Sequence[int], max_rows: int
) -> Pixels:
    if tensor.datatype not in _TYPES:
        raise RequestError(
            f"input {IMAGE!r}: datatype must be FP32 or FP16 (0..1) or UINT8 (0..255), got "
            f"{tensor.datatype[:40]!r}"
        )
    if len(tensor.shape) != 4 or tensor.shape[1:] != list(shape):
        expected = ", ".join(map(str, shape))
        raise RequestError(f"input {IMAGE!r}: shape must be [B, {expected}], got {tensor.shape}")
    _check_rows(tensor.shape[0], max_rows, IMAGE)
    values = _numbers(tensor) if blob is None else _view(tensor, blob)
    return _bytes(values) if tensor.datatype == "UINT8" else _unit(values)


def _check_rows(rows: int, max_rows: int, name: str) -> None:
    if not 1 <= rows <= max_rows:
        raise RequestError(
            f"input {name!r}: a request holds 1 to {max_rows} {name}s, got {rows}; send several"
        )


def _view(tensor: RequestInput, blob: memoryview) -> Pixels:
    """The bytes as numbers in the tensor's shape, where they are."""
    kind = _TYPES[tensor.datatype]
    wanted = math.prod(tensor.shape) * kind.itemsize
    if len(blob) != wanted:
        raise RequestError(
            f"input {IMAGE!r}: shape {tensor.shape} of {tensor.datatype} needs {wanted} bytes, "
            f"binary_data_size is {len(blob)}"
        )
    values: Pixels = np.frombuffer(blob, kind).reshape(tensor.shape)
    # The JSON part has any length, and arithmetic on numbers across words is slow.
    return values if values.flags.aligned else values.copy()


def _numbers(tensor: RequestInput) -> Pixels:
    """The data as numbers in the tensor's shape, whether it came flat or nested."""
    try:
        values = np.asarray(tensor.data)
    except ValueError:
        raise RequestError(f"input {IMAGE!r}: data is nested unevenly") from None
    if values.dtype.kind not in "iuf" and values.size:
        raise RequestError(f"input {IMAGE!r}: data must be finite numbers")
    if values.ndim > 1 and list(values.shape) != tensor.shape:
        raise RequestError(
            f"input {IMAGE!r}: data is nested as {list(values.shape)}, shape says {tensor.shape}"
        )
    wanted = math.prod(tensor.shape)
    if values.size != wanted:
        raise RequestError(
            f"input {IMAGE!r}: shape {tensor.shape} needs {wanted} numbers, got {values.size}"
        )
    return values.reshape(tensor.shape)


def _bytes(values: Pixels) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values  # type: ignore[return-value]
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 255:
        raise RequestError(f"input {IMAGE!r}: UINT8 takes whole numbers in 0..255")
    return values.astype(np.uint8)


def _unit(values: Pixels) -> npt.NDArray[np.float32]:
    # A NaN anywhere makes both of them NaN.
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RequestError(f"input {IMAGE!r}: data must be finite numbers")
    if low < -_SLACK or high > 1 + _SLACK:
        raise RequestError(
            f"input {IMAGE!r}: pixels of FP32 and FP16 are scaled to 0..1 (without mean and std), "
            f"got {low:g}..{high:g}; send UINT8 for 0..255"
        )
    return values.astype(np.float32, copy=False)
