"""What `POST /predict/{name}` answers, for a person who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.messages import problems_of


class Prediction(BaseModel):
    """One label with its probability."""

    label: str
    probability: float


class _Answer(BaseModel):
    model: str
    version: str
    """The version that answered."""
    members: int
    """Networks whose answer is in it."""
    members_total: int
    """Networks that there are."""
    late: bool = False
    """Whether members are missing because the answer was due."""
    ms: float
    """Milliseconds between the whole request's arrival and this answer."""


class PredictResponse(_Answer):
    """The answer about one image or text: the likeliest labels, best first."""

    predictions: list[Prediction]


class ItemAnswer(BaseModel):
    """The answer about one of several: its likeliest labels, or what is wrong with it."""

    predictions: list[Prediction] | None = None
    error: str | None = None


class BatchResponse(_Answer):
    """The answer about several images or texts, in their order."""

    answers: list[ItemAnswer]


class PredictRequest(BaseModel):
    """A body in JSON; one of the four.

    Attributes:
        image, images: PNG or JPEG files in base64.
        text, texts: for models that read texts.
    """

    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    images: Annotated[list[str], Field(min_length=1)] | None = None
    text: str | None = None
    texts: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> PredictRequest:
        if len(self.model_fields_set) != 1 or None in (
            getattr(self, name) for name in self.model_fields_set
        ):
            raise ValueError("send one of image, images, text, texts")
        return self


def parse_predict(body: bytes) -> PredictRequest:
    """Reads the JSON of a predict request.

    Raises:
        RequestError: if it is none.
    """
    try:
        return PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(problems_of(error)) from None


def best_labels(
    probabilities: npt.NDArray[np.float32], label_names: Sequence[str], top: int
) -> list[Prediction]:
    """The `top` likeliest labels of one sample, best first; ties by class number.

    Args:
        probabilities: float32[classes].
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [Prediction(label=label_names[k], probability=float(probabilities[k])) for k in order]
