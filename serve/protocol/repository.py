"""Messages of the model repository extension, and of the routes for traffic and rewards."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.config.serving import Name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class LoadParameters(_Strict):
    """What `load` may be told.

    `config` is a JSON text with the other two, for clients that send nothing else.
    """

    version: Name | None = None
    target: Annotated[str, Field(max_length=400)] | None = None
    config: Annotated[str, Field(max_length=10_000)] | None = None


class LoadRequest(_Strict):
    """The body of `load`; all of it may be left out."""

    parameters: LoadParameters = LoadParameters()


class UnloadParameters(_Strict):
    """What `unload` may be told; without a version, all of the model's go."""

    version: Name | None = None
    unload_dependents: bool = False


class UnloadRequest(_Strict):
    """The body of `unload`; all of it may be left out."""

    parameters: UnloadParameters = UnloadParameters()


class IndexRequest(_Strict):
    """The body of `index`: with `ready`, only what answers."""

    ready: bool = False


class TrafficRequest(BaseModel):
    """A section of `serve.traffic`: its type, and the keys of that type."""

    model_config = ConfigDict(extra="allow")

    type: str


class Reward(_Strict):
    """What an answer was worth."""

    version: Name
    reward: Annotated[float, Field(ge=0, le=1)]
