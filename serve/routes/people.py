"""`POST /predict/{name}`: for a person with curl."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response

from orchestrator.serve.backend import Answer, Ask, Inputs, NoAnswerError, Pixels
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import check_channels
from orchestrator.serve.protocol.people import (
    BatchResponse,
    ItemAnswer,
    Prediction,
    PredictRequest,
    PredictResponse,
    best_labels,
)
from orchestrator.serve.protocol.tensors import read_text
from orchestrator.serve.routes.documents import ASK_HEADERS, BINARY, ref
from orchestrator.serve.routes.shared import Desk, ask_of, json_answer
from orchestrator.serve.routes.uploads import read_upload

_FORM = {
    "type": "object",
    "properties": {
        name: {"oneOf": [BINARY, {"type": "array", "items": BINARY}]} for name in ("image", "text")
    },
}
_PREDICT: dict[str, Any] = {
    "parameters": ASK_HEADERS,
    "requestBody": {
        "required": True,
        "content": {
            "image/png": {"schema": BINARY},
            "image/jpeg": {"schema": BINARY},
            "text/plain": {"schema": {"type": "string"}},
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": ref(PredictRequest)},
        },
    },
}
Sample = Pixels | str
"""uint8[C, H, W], or a text."""


class PeopleRoutes:
    """Answers about files, in words."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._samples = 0

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        app.post(
            "/predict/{name}",
            response_model=PredictResponse | BatchResponse,
            tags=["people"],
            openapi_extra=_PREDICT,
        )(self.predict)

    async def predict(
        self,
        request: Request,
        name: str,
        top: Annotated[int, Query(ge=1, le=1000)] = 5,
        version: str = "",
    ) -> Response:
        """The likeliest labels of PNG or JPEG files, or of texts in UTF-8.

        One comes as the body itself, several as the files of a form, or either in JSON (images in
        base64). Of several, one that can't be read gets an error of its own.
        """
        card = self._desk.card(name, version)
        ask = ask_of(request, self._desk.settings, version)
        if card.reads == "image":
            check_channels(card.shape)
        upload = await read_upload(request, card.reads)
        start = time.perf_counter()
        with self._room(card, len(upload.items)):
            samples = await self._read(upload.items, card)
            sound = [one for one in samples if not isinstance(one, RequestError)]
            if not sound:
                raise _nothing_sound(samples)
            answers = iter(await self._asked(name, sound, ask))
        answered = [one if isinstance(one, RequestError) else next(answers) for one in samples]
        said = _about(card, answered, start)
        if upload.several:
            each = [_item(one, card, top) for one in answered]
            return json_answer(BatchResponse(**said, answers=each))
        return json_answer(PredictResponse(**said, predictions=_best(answered[0], card, top)))

    @contextlib.contextmanager
    def _room(self, card: ModelCard, count: int) -> Iterator[None]:
        """Holds the number of decoded samples to what may wait: they are larger than files."""
        most = self._desk.settings.waiting
        if self._samples and self._samples + count > most:
            raise NoAnswerError(
                f"{self._samples} samples wait for {card.name!r} and others; try again", status=429
            )
        self._samples += count
        try:
            yield
        finally:
            self._samples -= count

    async def _read(
        self, items: Sequence[bytes | RequestError], card: ModelCard
    ) -> list[Sample | RequestError]:
        """Each item as the model takes it, or what is wrong with it."""

        async def read(item: bytes | RequestError) -> Sample | RequestError:
            if isinstance(item, RequestError):
                return item
            try:
                if card.reads == "text":
                    return read_text(item, "the text")
                return await self._desk.decoder.decode(item, card.shape)
            except RequestError as error:
                return error

        return list(await asyncio.gather(*map(read, items)))

    async def _asked(
        self, name: str, samples: Sequence[Sample], ask: Ask
    ) -> list[Answer | NoAnswerError]:
        """The answer to each sample: of all together, or one by one if the model failed."""
        if len(samples) == 1:
            return [await self._desk.backend.predict(name, _together(samples), ask)]
        # All of them get one version, also when they are asked about one by one.
        ask = replace(ask, sticky=ask.sticky or uuid.uuid4().hex)
        try:
            answer = await self._desk.backend.predict(name, _together(samples), ask)
        except NoAnswerError as error:
            if error.status != 500:
                raise
            calls = [self._desk.backend.predict(name, _together([one]), ask) for one in samples]
            found = await asyncio.gather(*calls, return_exceptions=True)
            return [_answer_or_error(one) for one in found]
        rows = answer.computed.probabilities[:, None]
        return [
            replace(answer, computed=replace(answer.computed, probabilities=row)) for row in rows
        ]


def _together(samples: Sequence[Sample]) -> Inputs:
    pixels = [one for one in samples if isinstance(one, np.ndarray)]
    return np.stack(pixels) if pixels else [str(one) for one in samples]


def _answer_or_error(found: Answer | BaseException) -> Answer | NoAnswerError:
    if isinstance(found, Answer | NoAnswerError):
        return found
    raise found


def _nothing_sound(samples: Sequence[Sample | RequestError]) -> RequestError:
    """Why a request gets no answer at all: the one item's error, or the first of several."""
    errors = [one for one in samples if isinstance(one, RequestError)]
    if len(errors) == 1:
        return errors[0]
    return RequestError(f"none of {len(errors)} can be read; the first: {errors[0].message}")


def _about(
    card: ModelCard, answered: Sequence[Answer | RequestError | NoAnswerError], start: float
) -> dict[str, Any]:
    """What an answer says besides labels."""
    found = [one for one in answered if isinstance(one, Answer)]
    if not found:
        raise next(one for one in answered if isinstance(one, NoAnswerError))
    return {
        "model": card.name,
        "version": found[0].version,
        "members": min(one.computed.members for one in found),
        "members_total": found[0].members,
        "late": any(one.computed.late for one in found),
        "ms": round((time.perf_counter() - start) * 1000, 3),
    }


def _item(one: Answer | RequestError | NoAnswerError, card: ModelCard, top: int) -> ItemAnswer:
    if isinstance(one, Answer):
        return ItemAnswer(predictions=_best(one, card, top))
    return ItemAnswer(error=one.message)


def _best(
    one: Answer | RequestError | NoAnswerError, card: ModelCard, top: int
) -> list[Prediction]:
    assert isinstance(one, Answer)
    return best_labels(one.computed.probabilities[0], card.label_names, top)
