"""`POST /predict/{name}`: for a person with curl."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from starlette.datastructures import UploadFile

from orchestrator.serve import protocol
from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import decode
from orchestrator.serve.routes.shared import Desk, ask_of, json_answer

_ANY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


class PeopleRoutes:
    """Answers about files, in words."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.post(
            "/predict/{name}",
            response_model=protocol.PredictResponse,
            tags=["people"],
            openapi_extra=_ANY_BODY,
        )(self.predict)

    async def predict(
        self, request: Request, name: str, top: Annotated[int, Query(ge=1, le=1000)] = 5
    ) -> Response:
        """The likeliest labels of one PNG or JPEG file, sent as the body or as a form's file."""
        card = self._desk.card(name)
        data = await _uploaded(request)
        start = time.perf_counter()
        pixels = await asyncio.to_thread(decode, data, card.shape, self._desk.settings.images)
        ask = ask_of(request, self._desk.settings)
        answer = await self._desk.backend.predict(name, pixels[None], ask)
        return json_answer(
            protocol.PredictResponse(
                model=card.name,
                predictions=protocol.best_labels(
                    answer.computed.probabilities[0], card.label_names, top
                ),
                ms=round((time.perf_counter() - start) * 1000, 3),
            )
        )


async def _uploaded(request: Request) -> bytes:
    """The file of a request: its body, or the first file of its form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    raise RequestError("the form has no file; `curl -F image=@shoe.png` sends one")
