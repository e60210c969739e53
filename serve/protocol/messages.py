"""The messages of the Open Inference Protocol V2, as they are in JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.serve.errors import RequestError

_SHOWN = 10
"""Problems of one request that its answer names at most."""


class _Message(BaseModel):
    # Frozen ones can be shared as defaults: others are copied for each request.
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


# --- requests ------------------------------------------------------------------------------


class InputParameters(_Message):
    """What is said of an input besides its type.

    Attributes:
        binary_data_size: bytes that the tensor has after the JSON part of the body.
        shared_memory_region: refused; clients and server need not be on one machine.
    """

    binary_data_size: Annotated[int, Field(ge=0, strict=True)] | None = None
    shared_memory_region: str | None = None


class RequestInput(_Message):
    """One input tensor; `data` is flat or nested as the shape, and absent if it comes in binary."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(max_length=8)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(_Message):
    """How an output is wanted.

    Attributes:
        binary_data: as bytes after the JSON part of the answer.
        classification: as so many of the likeliest classes.
    """

    binary_data: Annotated[bool, Field(strict=True)] | None = None
    classification: Annotated[int, Field(ge=1, strict=True)] | None = None
    shared_memory_region: str | None = None


class RequestOutput(_Message):
    """One output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Message):
    """What is said of a request as a whole.

    Attributes:
        binary_data_output: outputs that say nothing themselves come as bytes.
        timeout: microseconds within which the answer is due.
    """

    binary_data_output: Annotated[bool, Field(strict=True)] = False
    timeout: Annotated[int, Field(ge=1, le=3_600_000_000, strict=True)] | None = None


class InferRequest(_Message):
    """The body of POST …/infer, or its JSON part."""

    id: str | None = None
    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None
    parameters: RequestParameters = RequestParameters()


def parse_request(body: bytes | memoryview) -> InferRequest:
    """Reads the JSON of an infer request.

    Raises:
        RequestError: naming every field that is missing or wrong.
    """
    try:
        return InferRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise RequestError(problems_of(error)) from None


def problems_of(error: ValidationError) -> str:
    """What is wrong with a client's JSON, each problem with its place."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    named = [
        ".".join(map(str, one["loc"])) + f": {one['msg']}" if one["loc"] else str(one["msg"])
        for one in found[:_SHOWN]
    ]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "; ".join(named + more)


# --- answers -------------------------------------------------------------------------------


class BinarySize(_Message):
    """Where an output's bytes are: after the JSON part, so many."""

    binary_data_size: int


class ResponseOutput(_Message):
    """One output tensor, its data flat in row-major order; in binary it is after the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: BinarySize | None = None
    data: list[float] | list[str] | None = None


class ResponseParameters(_Message):
    """How an ensemble answered.

    Attributes:
        members: networks whose answer is in it.
        members_total: networks that there are.
        late: whether members are missing because the answer was due.
    """

    members: int
    members_total: int
    late: bool = False


class InferResponse(_Message):
    """The answer of POST …/infer, or its JSON part."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: ResponseParameters | None = None
    outputs: list[ResponseOutput]


class TensorMetadata(_Message):
    """Name, type and shape of a tensor; −1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Message):
    """The answer of GET /v2/models/{name}."""

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
