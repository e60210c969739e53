"""`POST /labels/{name}`: the right answers to requests that were answered before."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.messages import problems_of
from orchestrator.serve.routes.shared import Desk, json_answer


class Labels(BaseModel):
    """The right labels of one request's inputs, in their order.

    Attributes:
        request: the id in the answer's `X-Request-Id` header.
    """

    model_config = ConfigDict(extra="forbid")

    request: Annotated[str, Field(min_length=1, max_length=128)]
    labels: Annotated[list[str], Field(min_length=1)]


class Judged(BaseModel):
    """Which version had answered, and whether each of its answers was right."""

    version: str
    correct: list[bool]


class LabelRoutes:
    """Takes labels in, so that accuracy and calibration in service are known."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        body = {"content": {"application/json": {"schema": Labels.model_json_schema()}}}
        app.post(
            "/labels/{name}",
            response_model=Judged,
            tags=["people"],
            openapi_extra={"requestBody": {"required": True, **body}},
        )(self.labels)

    async def labels(self, request: Request, name: str) -> Response:
        """Tells the right labels of an answer that this gateway gave before."""
        card = self._desk.card(name)
        try:
            given = Labels.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestError(problems_of(error)) from None
        unknown = [label for label in given.labels if label not in card.label_names]
        if unknown:
            raise RequestError(f"{name!r} has no label {unknown[0][:80]!r}")
        monitor = self._desk.monitor
        found = monitor.labelled(name, given.request, given.labels) if monitor else None
        if found is None:
            raise RequestError(
                f"no answer of {name!r} with id {given.request[:40]!r} and {len(given.labels)} "
                "inputs waits for labels: a gateway remembers its last 10,000 answers to requests "
                "of up to 16 inputs, and takes labels once",
                404,
            )
        return json_answer(Judged(version=found[0].version, correct=[one.correct for one in found]))
