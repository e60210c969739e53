"""Changing what is served while it is served: versions, traffic, rewards.

The repository routes are those of the Open Inference Protocol's model repository extension, which
`tritonclient`'s `load_model`, `unload_model` and `get_model_repository_index` speak.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from orchestrator.config.base import find
from orchestrator.errors import RunFolderError, UnknownNameError, UserError
from orchestrator.run_folder.registry import PREFIX, Registry
from orchestrator.serve.control.control import Control, LoadError
from orchestrator.serve.control.link import Link
from orchestrator.serve.control.table import ModelEntry
from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.messages import ErrorMessage
from orchestrator.serve.protocol.repository import (
    IndexRequest,
    LoadParameters,
    LoadRequest,
    Reward,
    TrafficRequest,
    UnloadRequest,
)
from orchestrator.serve.routes.access import check_may_change
from orchestrator.serve.routes.documents import ref
from orchestrator.serve.routes.shared import Desk
from orchestrator.serve.targets import NAME, Served, find_loadable

_OBEYED_SECONDS = 5.0
BodyT = TypeVar("BodyT", bound=BaseModel)


class RepositoryRoutes:
    """What operators change."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Connects paths and handlers."""
        models = "/v2/repository/models/{name}"
        app.post("/v2/repository/index", **_documented(IndexRequest))(self.index)
        app.post(f"{models}/load", **_documented(LoadRequest))(self.load)
        app.post(f"{models}/unload", **_documented(UnloadRequest))(self.unload)
        app.get("/v2/models/{name}/traffic", **_documented())(self.traffic)
        app.put("/v2/models/{name}/traffic", **_documented(TrafficRequest))(self.set_traffic)
        app.post("/feedback/{name}", **_documented(Reward))(self.feedback)

    # --- versions ---------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """The versions that are served, and those of the registry that could be."""
        link = self._allowed(request)[1]
        asked = await _body(request, IndexRequest)
        rows = [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for name, entry in link.table.models.items()
            for version in entry.versions
        ]
        if not asked.ready:
            served = {(row["name"], row["version"]) for row in rows}
            registered = await asyncio.to_thread(_registered, self._models_root())
            rows += [
                {"name": name, "version": version, "state": "UNAVAILABLE", "reason": "not loaded"}
                for name, version in registered
                if (name, version) not in served
            ]
        return JSONResponse(rows)

    async def load(self, request: Request, name: str) -> Response:
        """Starts a version and lets it answer; one that does not start changes nothing.

        Without parameters: the model of this name in the registry (the version in production), or
        the run of this name.
        """
        control, link = self._allowed(request)
        asked = (await _body(request, LoadRequest)).parameters
        if asked.config is not None:
            asked = _parsed(LoadParameters, asked.config.encode())
        served = await self._found(name, asked, link.table.models.get(name))
        try:
            await control.load(served.spec)
        except LoadError as error:
            raise LoadError(self._without_paths(error), error.status) from None
        await self._obeyed(lambda: served.version in _versions(link, name))
        return JSONResponse({"name": name, "version": served.version, "state": "READY"})

    async def _found(self, name: str, asked: LoadParameters, entry: ModelEntry | None) -> Served:
        """What to load, under which version."""
        if not NAME.fullmatch(name):
            raise RequestError(f"a model is called by letters, digits and . _ -, not {name[:99]!r}")
        root = self._models_root()
        target = asked.target or name
        if not asked.target and name in await asyncio.to_thread(Registry(root).names):
            target = PREFIX + name
        try:
            # Hashes files, and reads a sweep's study.
            found = await asyncio.to_thread(find_loadable, target, root)
        except UserError as error:
            status = 404 if isinstance(error, RunFolderError) else 400
            raise RequestError(self._without_paths(error), status) from None
        version = asked.version
        if version is None:
            version = found.version if found.sha256 else _next_version(found, entry)
        return Served(name, found.root, version, found.sha256)

    async def unload(self, request: Request, name: str) -> Response:
        """Takes a version, or all of a model's, away; requests that it has are answered first."""
        control = self._allowed(request)[0]
        asked = (await _body(request, UnloadRequest)).parameters
        await control.unload(name, asked.version or "")
        return JSONResponse({"name": name, "state": "UNAVAILABLE"})

    # --- traffic ----------------------------------------------------------------------------

    async def traffic(self, name: str) -> Response:
        """Which version answers: the rule, each version's share, what was learnt and done."""
        self._desk.card(name)
        link = self._desk.link
        if link is None or name not in link.table.models:
            raise RequestError("this server's traffic can't be changed", 404)
        return JSONResponse(self._traffic(name, link))

    def _traffic(self, name: str, link: Link) -> dict[str, Any]:
        entry = link.table.models[name]
        events = [
            {"time": one.time, "message": self._without_paths(one.message)}
            for one in link.table.events
            if one.model == name
        ]
        return {
            "model": name,
            "rule": dict(entry.rule),
            "shares": self._desk.backend.shares(name),
            "state": dict(entry.state),
            "events": events,
        }

    async def set_traffic(self, request: Request, name: str) -> Response:
        """Replaces the rule; the body is a section of `serve.traffic`, as JSON."""
        control, link = self._allowed(request)
        self._desk.card(name)
        rule = _rule_of(await request.body())
        await control.set_rule(name, rule)
        await self._obeyed(lambda: _rule(link, name) == rule)
        return JSONResponse(self._traffic(name, link))

    async def feedback(self, request: Request, name: str) -> Response:
        """Tells what an answer was worth, 0..1, to a rule that learns from it."""
        self._desk.card(name)
        given = await _body(request, Reward)
        self._desk.card(name, given.version)
        link = self._desk.link
        rule = _rule(link, name).get("type", "latest") if link else "latest"
        if link is None or rule != "bandit":
            raise RequestError(
                f"traffic of {name!r} is {rule!r}, which learns nothing from rewards; set it to "
                "{type: bandit, versions: […]}",
                409,
            )
        link.reward(name, given.version, given.reward)
        return JSONResponse({"accepted": True}, 202)

    # --- what they share --------------------------------------------------------------------

    def _allowed(self, request: Request) -> tuple[Control, Link]:
        check_may_change(request, self._desk.settings)
        if self._desk.control is None or self._desk.link is None:
            raise RequestError("what this server serves can't be changed", 403)
        if self._desk.link.table.generation == 0:
            raise RequestError("the server is starting; try again", 503)
        return self._desk.control, self._desk.link

    def _models_root(self) -> Path:
        return Path(self._desk.settings.models_root or "/nonexistent")

    def _without_paths(self, error: Exception | str) -> str:
        """The message, in which files are named relative to the runs' folder."""
        root, text = self._models_root(), str(error)
        for folder in (root, root.resolve()):
            text = text.replace(f"{folder}/", "").replace(str(folder), "the runs' folder")
        return text

    async def _obeyed(self, done: Callable[[], bool]) -> None:
        """Waits a moment until this gateway obeys, so that the next request finds the change."""
        end = time.monotonic() + _OBEYED_SECONDS
        while not done() and time.monotonic() < end:
            await asyncio.sleep(0.01)


def _documented(body: type[BaseModel] | None = None) -> dict[str, Any]:
    refusals = {status: {"model": ErrorMessage} for status in (401, 403, 409)}
    documented: dict[str, Any] = {"tags": ["operations"], "responses": refusals}
    if body is not None:
        content = {"application/json": {"schema": ref(body)}}
        documented["openapi_extra"] = {"requestBody": {"content": content}}
    return documented


async def _body(request: Request, model: type[BodyT]) -> BodyT:
    return _parsed(model, await request.body())


def _parsed(model: type[BodyT], data: bytes) -> BodyT:
    try:
        return model.model_validate_json(data or b"{}")
    except ValidationError as error:
        raise RequestError(_problems(error)) from None


def _problems(error: ValidationError) -> str:
    problems = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
    return "; ".join(": ".join(part for part in one if part) for one in problems)


def _rule_of(data: bytes) -> dict[str, Any]:
    """A traffic section, complete; plain values."""
    section = _parsed(TrafficRequest, data).model_dump()
    try:
        config = find("traffic", section["type"]).config.model_validate(section)
    except UnknownNameError as error:
        raise RequestError(str(error)) from None
    except ValidationError as error:
        raise RequestError(_problems(error)) from None
    return config.model_dump(mode="json")


def _registered(models_root: Path) -> list[tuple[str, str]]:
    registry = Registry(models_root)
    return [
        (name, str(one.version)) for name in registry.names() for one in registry.versions(name)
    ]


def _next_version(found: Served, entry: ModelEntry | None) -> str:
    """The version that is served from this folder, or the number after the largest."""
    versions = entry.versions if entry else {}
    same = [v for v, one in versions.items() if one.spec.root == str(found.root.resolve())]
    numbers = [int(version) for version in versions if version.isdecimal()]
    return same[-1] if same else str(max(numbers, default=0) + 1)


def _versions(link: Link, name: str) -> list[str]:
    entry = link.table.models.get(name)
    return list(entry.versions) if entry else []


def _rule(link: Link, name: str) -> dict[str, Any]:
    entry = link.table.models.get(name)
    return dict(entry.rule) if entry else {}
