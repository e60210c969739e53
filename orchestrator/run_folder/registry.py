"""The registry: which trained models have a name, a number and a stage.

A folder beside the runs, with one JSON file for each name. Models are not copied: a version names
their files by sha256, and a file that is gone or was changed is refused when it is to be used.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.errors import RunFolderError, UserError, suggest
from orchestrator.files import read_json, write_json
from orchestrator.run_folder.lease import locked
from orchestrator.run_folder.lineage import describe_origin, model_files
from orchestrator.run_folder.paths import Kind, Target

FORMAT = 1
PREFIX = "registry:"
FOLDER = "registry"
Stage = Literal["none", "staging", "production", "archived"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        version: counted from 1 for each name.
        kind: what its folder holds.
        path: the folder; relative to the runs' folder if it is below it.
        files: sha256 of each file that it consists of, by path relative to `path`.
        created: ISO 8601, UTC.
        origin: source run, sweep, digests of configuration and data, commit, metrics.
    """

    name: str
    version: int
    kind: Kind
    path: str
    files: Mapping[str, str]
    created: str
    stage: Stage = "none"
    origin: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """How people name it."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class _Record:
    """A name's file: its versions, and which were in production, the last one at the end."""

    versions: tuple[ModelVersion, ...] = ()
    production: tuple[int, ...] = ()

    def staged(self, stages: Mapping[int, Stage]) -> _Record:
        """With other stages for these versions."""
        changed = (replace(one, stage=stages.get(one.version, one.stage)) for one in self.versions)
        return replace(self, versions=tuple(changed))


class Registry:
    """The registry beside some runs. Safe for several processes: one writes at a time.

    Args:
        runs_dir: the runs' folder; the registry is the folder `registry` in it.
    """

    def __init__(self, runs_dir: Path) -> None:
        self._runs = runs_dir.absolute()
        self.folder = self._runs / FOLDER

    # --- reading ----------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        suffix = len(".versions.json")
        return sorted(path.name[:-suffix] for path in self.folder.glob("*.versions.json"))

    def versions(self, name: str) -> Sequence[ModelVersion]:
        """All versions of a name, by number.

        Raises:
            RunFolderError: if the name is not registered.
        """
        return self._read(name).versions

    def find(self, reference: str) -> ModelVersion:
        """The version that a reference means.

        Args:
            reference: `NAME@3`, `NAME@production` (the newest version of that stage), or `NAME`,
                which is the one in production, or the newest where none is.

        Raises:
            RunFolderError: naming what there is.
        """
        name, _, which = reference.partition("@")
        versions = self.versions(name)
        if which.isdecimal():
            found = [one for one in versions if one.version == int(which)]
        elif which:
            found = [one for one in versions if one.stage == which]
        else:
            found = [one for one in versions if one.stage == "production"] or [*versions]
        if not found:
            there = ", ".join(f"{one.version} ({one.stage})" for one in versions)
            raise RunFolderError(f"registry has no {reference}; {name} has the versions {there}")
        return found[-1]

    def root(self, version: ModelVersion) -> Path:
        """The folder of a version."""
        return self._runs / version.path

    def checked(self, reference: str) -> tuple[ModelVersion, Target]:
        """The version that a reference means, and its folder, whose files are still the same.

        Raises:
            RunFolderError: if there is none, or a file is gone or was changed.
        """
        version = self.find(reference)
        check_files(self.root(version), version.files.items(), version.key)
        return version, Target(version.kind, self.root(version).resolve())

    # --- writing ----------------------------------------------------------------------------

    def register(self, target: Target, name: str, note: str = "") -> ModelVersion:
        """Adds a run or an ensemble as the next version of a name.

        Raises:
            UserError: if the name is not fit for a URL.
            RunFolderError: if nothing trained is there, or this very model is registered already.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f"a name has letters, digits and . _ - only, up to 128, but is {name!r}"
            )
        files = model_files(target)
        root = target.path.resolve()
        inside = root.is_relative_to(self._runs.resolve())
        path = os.path.relpath(root, self._runs.resolve()) if inside else str(root)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        origin = describe_origin(target, self._runs)

        def added(record: _Record) -> _Record:
            for one in record.versions:
                if (one.path, dict(one.files)) == (path, files):
                    raise RunFolderError(f"{target.path} is registered already, as {one.key}")
            number = max((one.version for one in record.versions), default=0) + 1
            version = ModelVersion(
                name, number, target.kind, path, files, created, origin=origin, note=note
            )
            return replace(record, versions=(*record.versions, version))

        return self._change(name, added, new=True).versions[-1]

    def promote(self, reference: str, stage: Stage = "production") -> ModelVersion:
        """Puts a version on a stage; the version that was in production is archived.

        Raises:
            RunFolderError: if there is no such version, or its files are not what they were.
        """
        chosen = self.find(reference)
        if stage in ("staging", "production"):
            check_files(self.root(chosen), chosen.files.items(), chosen.key)

        def promoted(record: _Record) -> _Record:
            if stage != "production":
                return record.staged({chosen.version: stage})
            before: dict[int, Stage] = {
                one.version: "archived" for one in record.versions if one.stage == "production"
            }
            history = [one for one in record.production if one != chosen.version]
            record = replace(record, production=(*history, chosen.version))
            return record.staged(before | {chosen.version: "production"})

        self._change(chosen.name, promoted)
        return self.find(chosen.key)

    def rollback(self, name: str) -> ModelVersion:
        """Brings the version back that was in production before; archives the one that is.

        Raises:
            RunFolderError: if there was none, or its files are not what they were.
        """

        def rolled(record: _Record) -> _Record:
            now = [one.version for one in record.versions if one.stage == "production"]
            history = [one for one in record.production if one not in now]
            if not history:
                raise RunFolderError(
                    f"no version of {name} was in production before; `orch registry promote` "
                    "puts one there"
                )
            back = next(one for one in record.versions if one.version == history[-1])
            check_files(self.root(back), back.files.items(), back.key)
            archived: dict[int, Stage] = dict.fromkeys(now, "archived")
            record = replace(record, production=tuple(history))
            return record.staged(archived | {back.version: "production"})

        self._change(name, rolled)
        return self.find(f"{name}@production")

    # --- the files --------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.versions.json"

    def _read(self, name: str) -> _Record:
        path = self._path(name)
        if not _NAME.fullmatch(name) or not path.exists():
            known = self.names()
            near = suggest(name, known) if known else "nothing is registered yet"
            raise RunFolderError(f"{name!r} is not registered in {self.folder}; {near}")
        try:
            content = read_json(path)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']} is not {FORMAT}")
            versions = tuple(ModelVersion(name=name, **one) for one in content["versions"])
            return _Record(versions, tuple(content["production"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{path} is damaged ({error!r}); restore it") from None

    def _change(
        self, name: str, change: Callable[[_Record], _Record], new: bool = False
    ) -> _Record:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            exists = self._path(name).exists()
            record = change(_Record() if new and not exists else self._read(name))
            versions = [asdict(one) for one in record.versions]
            for one in versions:
                del one["name"]
            content = {"format": FORMAT, "name": name, "versions": versions}
            write_json(self._path(name), content | {"production": list(record.production)})
        return record


def stage_of(text: str) -> Stage:
    """A stage by its name.

    Raises:
        UserError: naming the stages.
    """
    if text not in STAGES:
        raise UserError(f"unknown stage {text!r}; {suggest(text, STAGES)}")
    return text


def check_files(root: Path, sha256: Iterable[tuple[str, str]], key: str) -> None:
    """Makes sure that files are those that were registered.

    Args:
        root: the folder that paths are relative to.
        sha256: pairs of path and digest.
        key: what the version is called.

    Raises:
        RunFolderError: naming the first file that is gone or was changed.
    """
    for name, expected in sha256:
        path = Path(os.path.normpath(root / name))
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise RunFolderError(
                f"{key} consists of {path} among others, but it is gone; put it back, or register "
                "the model again"
            ) from None
        if found != expected:
            raise RunFolderError(
                f"{path} was changed since {key} was registered: its sha256 is {found[:12]}, not "
                f"{expected[:12]}; put it back, or register the model again"
            )
