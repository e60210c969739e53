"""The Open Inference Protocol V2 under `/v2`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as version_of

from fastapi import FastAPI, Request, Response

from orchestrator.serve import protocol
from orchestrator.serve.backend import NoAnswerError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.routes.shared import Desk, ask_of, json_answer

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": protocol.InferRequest.model_json_schema()}},
    }
}


class InferenceRoutes:
    """Metadata, health and inference as existing clients ask for them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.get("/v2", response_model=protocol.ServerMetadata, tags=["v2"])(self.server)
        health = {"response_model": protocol.Ready, "response_model_exclude_none": True}
        app.get("/v2/health/live", tags=["v2"], **health)(self.live)  # type: ignore[arg-type]
        app.get("/v2/health/ready", tags=["v2"], **health)(self.server_ready)  # type: ignore[arg-type]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{model_version}"):
            app.get(path, response_model=protocol.ModelMetadata, tags=["v2"])(self.model)
            app.get(f"{path}/ready", response_model=protocol.ModelReady, tags=["v2"])(
                self.model_ready
            )
            app.post(
                f"{path}/infer",
                response_model=protocol.InferResponse,
                tags=["v2"],
                openapi_extra=_BODY,
            )(self.infer)

    async def server(self) -> Response:
        """Name, version and extensions of this server."""
        return json_answer(
            protocol.ServerMetadata(name="orch", version=version_of("orch"), extensions=[])
        )

    async def live(self) -> Response:
        """Whether the process answers."""
        return json_answer(protocol.Ready(live=True))

    async def server_ready(self) -> Response:
        """Whether every model would answer now; status 503 if not."""
        backend = self._desk.backend
        states = await asyncio.gather(*map(backend.ready, backend.cards))
        ready = bool(states) and all(states)
        return json_answer(protocol.Ready(ready=ready), 200 if ready else 503)

    async def model(self, name: str, model_version: str = "") -> Response:
        """Inputs and outputs of a model."""
        card = self._desk.card(name, model_version)
        return json_answer(_metadata(card, list(self._desk.backend.cards[name])))

    async def model_ready(self, name: str, model_version: str = "") -> Response:
        """Whether a model would answer now; status 503 if not."""
        card = self._desk.card(name, model_version)
        if not await self._desk.backend.ready(name, model_version):
            raise NoAnswerError(f"model {card.name!r} is not ready; try again", status=503)
        return json_answer(protocol.ModelReady(name=card.name))

    async def infer(self, request: Request, name: str, model_version: str = "") -> Response:
        """Probabilities of a batch, as the Open Inference Protocol V2 says."""
        card = self._desk.card(name, model_version)
        asked = protocol.parse_request(await request.body())
        outputs = protocol.wanted_outputs(asked)
        pixels = protocol.read_pixels(asked, card.shape)
        ask = ask_of(request, self._desk.settings, model_version)
        answer = await self._desk.backend.predict(name, pixels, ask)
        return json_answer(
            protocol.InferResponse(
                model_name=card.name,
                model_version=answer.version,
                id=asked.id,
                outputs=protocol.write_outputs(
                    answer.computed.probabilities, card.label_names, outputs
                ),
            )
        )


def _metadata(card: ModelCard, versions: list[str]) -> protocol.ModelMetadata:
    return protocol.ModelMetadata(
        name=card.name,
        versions=versions,
        platform="orch_ensemble" if card.members > 1 else "orch_model",
        inputs=[
            protocol.TensorMetadata(name=protocol.INPUT, datatype="FP32", shape=[-1, *card.shape])
        ],
        outputs=[
            protocol.TensorMetadata(
                name=protocol.PROBABILITIES, datatype="FP32", shape=[-1, len(card.label_names)]
            ),
            protocol.TensorMetadata(name=protocol.LABEL, datatype="BYTES", shape=[-1]),
        ],
        parameters={
            "labels": list(card.label_names),
            "pixels": "FP32 in 0..1 or UINT8 in 0..255; the server applies mean and std",
            "members": card.members,
        },
    )
