"""Outputs of an infer request: `probabilities`, FP32 [B, classes], and `label`, BYTES [B].

With the parameter `classification: n`, `probabilities` becomes the n likeliest classes of each
sample, BYTES [B, n], each "value:index:label".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_json

from orchestrator.serve.backend import Answer, Probabilities
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.binary import join_body, pack_strings
from orchestrator.serve.protocol.messages import (
    InferRequest,
    RequestOutput,
)

PROBABILITIES, LABEL = "probabilities", "label"
_NAMES = (PROBABILITIES, LABEL)


@dataclass(frozen=True)
class Wanted:
    """One output that is asked for.

    Attributes:
        binary: as bytes after the JSON part.
        classes: as so many of the likeliest classes; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    classes: int = 0


def wanted_outputs(request: InferRequest) -> tuple[Wanted, ...]:
    """The outputs that a request asks for; all of them when it names none.

    Raises:
        RequestError: for an output that does not exist, or can't be given like that.
    """
    binary = request.parameters.binary_data_output
    if not request.outputs:
        return Wanted(PROBABILITIES, binary), Wanted(LABEL, binary)
    names = [output.name for output in request.outputs]
    unknown = [name[:40] for name in names if name not in _NAMES]
    if unknown:
        raise RequestError(f"unknown outputs {unknown[:8]}; there are {PROBABILITIES!r}, {LABEL!r}")
    if len(set(names)) < len(names):
        raise RequestError(f"an output is asked for twice: {names[:8]}")
    return tuple(_wanted(output, binary) for output in request.outputs)


def _wanted(output: RequestOutput, binary: bool) -> Wanted:
    asked = output.parameters
    if asked.shared_memory_region is not None:
        raise RequestError(f"output {output.name!r}: there is no shared memory")
    if asked.classification and output.name == LABEL:
        raise RequestError(
            f"output {LABEL!r} is no number to choose classes by; ask {PROBABILITIES!r} for them"
        )
    kind = binary if asked.binary_data is None else asked.binary_data
    return Wanted(output.name, kind, asked.classification or 0)


def write_response(
    card: ModelCard, answer: Answer, request_id: str | None, wanted: Sequence[Wanted]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part; None if it is JSON altogether.

    The JSON is an `InferResponse`, written from plain dictionaries: building models would take
    most of the time of a small answer.
    """
    message: dict[str, Any] = {"model_name": card.name, "model_version": answer.version}
    if request_id is not None:
        message["id"] = request_id
    if answer.members > 1:
        done = answer.computed
        message["parameters"] = {
            "members": done.members,
            "members_total": answer.members,
            "late": done.late,
        }
    message["outputs"] = outputs = []
    blobs: list[bytes] = []
    for one in wanted:
        output, blob = _written(one, answer.computed.probabilities, card.label_names)
        outputs.append(output)
        if one.binary:
            blobs.append(blob)
    head = to_json(message)
    return (join_body(head, blobs), len(head)) if blobs else (head, None)


def _written(
    one: Wanted, rows: Probabilities, label_names: Sequence[str]
) -> tuple[dict[str, Any], bytes]:
    """An output, a `ResponseOutput`, and its bytes if it is wanted in binary."""
    shape, kind = [len(rows)], "BYTES"
    strings: list[str] = []
    if one.name == PROBABILITIES and not one.classes:
        shape, kind = list(rows.shape), "FP32"
    elif one.classes:
        strings = top_classes(rows, label_names, one.classes)
        shape.append(len(strings) // len(rows))
    else:
        strings = [label_names[k] for k in rows.argmax(1)]
    output: dict[str, Any] = {"name": one.name, "shape": shape, "datatype": kind}
    if not one.binary:
        output["data"] = strings if kind == "BYTES" else rows.ravel().tolist()
        return output, b""
    blob = pack_strings(strings) if kind == "BYTES" else rows.astype("<f4", copy=False).tobytes()
    output["parameters"] = {"binary_data_size": len(blob)}
    return output, blob


def top_classes(rows: Probabilities, label_names: Sequence[str], count: int) -> list[str]:
    """The likeliest classes of each sample as "value:index:label", best first; ties by index.

    Args:
        rows: float32[B, classes].
        count: classes of each sample; all if there are fewer.

    Returns:
        B·min(count, classes) strings, one sample after another.
    """
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    return [
        f"{float(row[k]):.9g}:{k}:{label_names[k]}"
        for row, best in zip(rows, order, strict=True)
        for k in best
    ]
