"""The Open Inference Protocol V2 under `/v2`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request, Response

from orchestrator.serve.backend import Inputs, NoAnswerError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.protocol import messages
from orchestrator.serve.protocol.binary import HEADER, split_body
from orchestrator.serve.protocol.compression import chosen_encoding, compress
from orchestrator.serve.protocol.outputs import (
    LABEL,
    PROBABILITIES,
    Wanted,
    wanted_outputs,
    write_response,
)
from orchestrator.serve.protocol.tensors import IMAGE, TEXT, read_inputs
from orchestrator.serve.routes.documents import ASK_HEADERS, BINARY, ref
from orchestrator.serve.routes.shared import Desk, ask_of, json_answer

_EXTENSIONS = ("binary_tensor_data", "classification", "parameters")
_INFER: dict[str, Any] = {
    "parameters": [
        *ASK_HEADERS,
        {
            "name": HEADER,
            "in": "header",
            "description": "Bytes of the JSON part, if tensors follow it in binary.",
            "schema": {"type": "integer", "minimum": 0},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": ref(messages.InferRequest)},
            "application/octet-stream": {"schema": BINARY},
        },
    },
}
_INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/octet-stream": {"schema": BINARY}},
        "headers": {
            HEADER: {
                "description": "Bytes of the JSON part, if outputs follow it in binary.",
                "schema": {"type": "integer"},
            }
        },
    }
}


class InferenceRoutes:
    """Metadata, health and inference as existing clients ask for them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.get("/v2", response_model=messages.ServerMetadata, tags=["v2"])(self.server)
        health: dict[str, Any] = {"response_model": messages.Ready, "tags": ["v2"]}
        app.get("/v2/health/live", **health)(self.live)
        not_ready: dict[int | str, dict[str, Any]] = {503: {"model": messages.Ready}}
        app.get("/v2/health/ready", responses=not_ready, **health)(self.server_ready)
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            app.get(path, response_model=messages.ModelMetadata, tags=["v2"])(self.model)
            app.get(f"{path}/ready", response_model=messages.ModelReady, tags=["v2"])(
                self.model_ready
            )
            app.post(
                f"{path}/infer",
                response_model=messages.InferResponse,
                responses=_INFERRED,
                tags=["v2"],
                openapi_extra=_INFER,
            )(self.infer)

    async def server(self) -> Response:
        """Name, version and extensions of this server."""
        extensions = [*_EXTENSIONS, *(("model_repository",) if self._desk.control else ())]
        return json_answer(
            messages.ServerMetadata(
                name="orch", version=version_of("orch"), extensions=sorted(extensions)
            )
        )

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return json_answer(messages.Ready(live=True))

    async def server_ready(self) -> Response:
        """Whether every model would answer now; status 503 if not."""
        backend = self._desk.backend
        states = await asyncio.gather(*map(backend.ready, backend.cards))
        ready = bool(states) and all(states)
        return json_answer(messages.Ready(ready=ready), 200 if ready else 503)

    async def model(self, name: str, version: str = "") -> Response:
        """Inputs and outputs of a model."""
        card = self._desk.card(name, version)
        return json_answer(_metadata(card, list(self._desk.backend.cards[name])))

    async def model_ready(self, name: str, version: str = "") -> Response:
        """Whether a model would answer now; status 503 if not."""
        card = self._desk.card(name, version)
        if not await self._desk.backend.ready(name, version):
            raise NoAnswerError(f"model {card.name!r} is not ready; try again", status=503)
        return json_answer(messages.ModelReady(name=card.name))

    async def infer(self, request: Request, name: str, version: str = "") -> Response:
        """Probabilities and labels of a batch; tensors in JSON or in binary, both ways.

        `X-Orch-Client` names who always gets the same version. The answer is due within
        `X-Orch-Deadline-Ms`, or the parameter `timeout` in microseconds.
        """
        desk = self._desk
        if not version and request.scope["query_string"]:
            version = request.query_params.get("version", "")
        card = desk.card(name, version)
        asked = _read(await request.body(), request.headers.get(HEADER), card)
        ask = ask_of(request, desk.settings, version, asked.timeout)
        answer = await desk.backend.predict(name, asked.inputs, ask)
        body, json_length = write_response(card, answer, asked.id, asked.wanted)
        headers = {} if json_length is None else {HEADER: str(json_length)}
        if encoding := chosen_encoding(request.headers.get("accept-encoding", ""), len(body)):
            body = await compress(body, encoding)
            headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
        kind = "application/json" if json_length is None else "application/octet-stream"
        return Response(body, headers=headers, media_type=kind)


@dataclass(frozen=True)
class _Asked:
    """What is kept of a request while it waits: not its JSON, which may be ten times as large."""

    inputs: Inputs
    wanted: Sequence[Wanted]
    id: str | None
    timeout: int | None


def _read(body: bytes, header: str | None, card: ModelCard) -> _Asked:
    request, blobs = split_body(body, header)
    wanted = wanted_outputs(request)
    inputs = read_inputs(request, blobs, card)
    return _Asked(inputs, wanted, request.id, request.parameters.timeout)


def _metadata(card: ModelCard, versions: list[str]) -> messages.ModelMetadata:
    tensor = messages.TensorMetadata
    reads_text = card.reads == "text"
    said = {
        "text": "UTF-8, one element a text",
        "image": "FP32 or FP16 in 0..1, or UINT8 in 0..255; the server applies mean and std",
    }
    return messages.ModelMetadata(
        name=card.name,
        versions=versions,
        platform="orch_ensemble" if card.members > 1 else "orch_model",
        inputs=[
            tensor(name=TEXT, datatype="BYTES", shape=[-1])
            if reads_text
            else tensor(name=IMAGE, datatype="FP32", shape=[-1, *card.shape])
        ],
        outputs=[
            tensor(name=PROBABILITIES, datatype="FP32", shape=[-1, len(card.label_names)]),
            tensor(name=LABEL, datatype="BYTES", shape=[-1]),
        ],
        parameters={
            "labels": list(card.label_names),
            "texts" if reads_text else "pixels": said[card.reads],
            "members": card.members,
        },
    )
