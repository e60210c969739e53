"""The Open Inference Protocol V2 in JSON: its types, and tensors checked on the way in and out.

One input, `image`: FP32[B, C, H, W] with pixels scaled to 0..1, or UINT8[B, C, H, W] with pixels
0..255. Mean and std are applied by the server. Two outputs: `probabilities`, FP32[B, classes], and
`label`, BYTES[B].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.serve.errors import RequestError

INPUT, PROBABILITIES, LABEL = "image", "probabilities", "label"
MAX_ROWS = 1024
_SLACK = 1e-3
"""How far beyond 0..1 rounding may carry a pixel."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")


class RequestInput(_Message):
    """One input tensor; `data` is flat or nested as the shape."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: str
    data: list[Any]


class RequestOutput(_Message):
    """One output that is asked for."""

    name: str


class InferRequest(_Message):
    """The body of POST …/infer."""

    id: str | None = None
    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(_Message):
    """One output tensor, its data flat in row-major order."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferResponse(_Message):
    """The answer of POST …/infer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class TensorMetadata(_Message):
    """Name, type and shape of a tensor; −1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Message):
    """The answer of GET /v2/models/{name}."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class ServerMetadata(_Message):
    """The answer of GET /v2."""

    name: str
    version: str
    extensions: list[str]


class Ready(_Message):
    """The answer of the health routes of the server."""

    live: bool | None = None
    ready: bool | None = None


class ModelReady(_Message):
    """The answer of GET /v2/models/{name}/ready."""

    name: str
    ready: Literal[True] = True


class ErrorMessage(_Message):
    """What every refused request gets."""

    error: str


class Prediction(_Message):
    """One label with its probability."""

    label: str
    probability: float


class PredictResponse(_Message):
    """The answer of POST /predict/{name}: the likeliest labels, best first."""

    model: str
    predictions: list[Prediction]
    ms: float
    """Milliseconds between the whole request's arrival and this answer."""


def parse_request(body: bytes) -> InferRequest:
    """Reads the body of an infer request.

    Raises:
        RequestError: naming every field that is missing or wrong.
    """
    try:
        return InferRequest.model_validate_json(body)
    except ValidationError as error:
        problems = [
            ".".join(map(str, problem["loc"])) + f": {problem['msg']}"
            if problem["loc"]
            else str(problem["msg"])
            for problem in error.errors(include_url=False, include_input=False)[:10]
        ]
        raise RequestError("; ".join(problems)) from None


def read_pixels(
    request: InferRequest, shape: Sequence[int], max_rows: int = MAX_ROWS
) -> npt.NDArray[np.generic]:
    """Takes the pixels out of a request.

    Args:
        request: the parsed body.
        shape: (C, H, W) of the model's input.
        max_rows: images that one request may hold.

    Returns:
        uint8[B, C, H, W] in 0..255 or float32[B, C, H, W] in 0..1.

    Raises:
        RequestError: when name, datatype, shape, number of elements or values are wrong.
    """
    tensor = _only_input(request)
    if len(tensor.shape) != 4 or tensor.shape[1:] != list(shape):
        expected = ", ".join(map(str, shape))
        raise RequestError(f"input {INPUT!r}: shape must be [B, {expected}], got {tensor.shape}")
    if not 1 <= tensor.shape[0] <= max_rows:
        raise RequestError(
            f"input {INPUT!r}: a request holds 1 to {max_rows} images, got {tensor.shape[0]}"
        )
    values = _numbers(tensor)
    return _bytes(values) if tensor.datatype == "UINT8" else _unit(values)


def _only_input(request: InferRequest) -> RequestInput:
    names = [tensor.name for tensor in request.inputs]
    if names != [INPUT]:
        raise RequestError(f"the model has one input, {INPUT!r}; got {names}")
    tensor = request.inputs[0]
    if tensor.datatype not in ("FP32", "UINT8"):
        raise RequestError(
            f"input {INPUT!r}: datatype must be FP32 (0..1) or UINT8 (0..255), "
            f"got {tensor.datatype!r}"
        )
    return tensor


def _numbers(tensor: RequestInput) -> npt.NDArray[np.generic]:
    """The data as numbers in the tensor's shape, whether it came flat or nested."""
    try:
        values = np.asarray(tensor.data)
    except ValueError:
        raise RequestError(f"input {INPUT!r}: data is nested unevenly") from None
    if values.dtype.kind not in "iuf" and values.size:
        raise RequestError(f"input {INPUT!r}: data must be finite numbers")
    if values.ndim > 1 and list(values.shape) != tensor.shape:
        raise RequestError(
            f"input {INPUT!r}: data is nested as {list(values.shape)}, shape says {tensor.shape}"
        )
    wanted = int(np.prod(tensor.shape))
    if values.size != wanted:
        raise RequestError(
            f"input {INPUT!r}: shape {tensor.shape} needs {wanted} numbers, got {values.size}"
        )
    return values.reshape(tensor.shape)


def _bytes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 255:
        raise RequestError(f"input {INPUT!r}: UINT8 takes whole numbers in 0..255")
    return values.astype(np.uint8)


def _unit(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise RequestError(f"input {INPUT!r}: data must be finite numbers")
    low, high = float(numbers.min()), float(numbers.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise RequestError(
            f"input {INPUT!r}: FP32 pixels are scaled to 0..1 (without mean and std), got "
            f"{low:g}..{high:g}; send UINT8 for 0..255"
        )
    return numbers.astype(np.float32)


def wanted_outputs(request: InferRequest) -> tuple[str, ...]:
    """The outputs that a request asks for; all of them when it names none.

    Raises:
        RequestError: for an output that does not exist.
    """
    if not request.outputs:
        return PROBABILITIES, LABEL
    names = tuple(output.name for output in request.outputs)
    unknown = [name for name in names if name not in (PROBABILITIES, LABEL)]
    if unknown:
        raise RequestError(f"unknown outputs {unknown}; there are {PROBABILITIES!r}, {LABEL!r}")
    return names


def write_outputs(
    probabilities: npt.NDArray[np.float32], label_names: Sequence[str], names: Sequence[str]
) -> list[ResponseOutput]:
    """The output tensors of an answer.

    Args:
        probabilities: float32[B, classes].
        label_names: one a class.
        names: which outputs, in which order.
    """
    made = {
        PROBABILITIES: lambda: ResponseOutput(
            name=PROBABILITIES,
            shape=list(probabilities.shape),
            datatype="FP32",
            data=probabilities.ravel().tolist(),
        ),
        LABEL: lambda: ResponseOutput(
            name=LABEL,
            shape=[len(probabilities)],
            datatype="BYTES",
            data=[label_names[k] for k in probabilities.argmax(1)],
        ),
    }
    return [made[name]() for name in names]


def best_labels(
    probabilities: npt.NDArray[np.float32], label_names: Sequence[str], top: int
) -> list[Prediction]:
    """The `top` likeliest labels of one sample, best first; ties by class number.

    Args:
        probabilities: float32[classes].
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [Prediction(label=label_names[k], probability=float(probabilities[k])) for k in order]
