"""From what a user names to the models that a server offers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import RunFolderError, UserError
from orchestrator.run_folder.paths import RunPaths, Target, resolve_target
from orchestrator.run_folder.registry import PREFIX, Registry
from orchestrator.serve.control.table import VersionSpec

_PARTS = ("ensemble", "student", "baseline")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAMED = re.compile(rf"(?P<name>{_NAME})(?:@(?P<version>{_NAME}))?=(?P<target>.+)")
NAME = re.compile(_NAME)
"""What models and versions may be called."""
_BELOW = re.compile(rf"{_NAME}(/{_NAME})*")


@dataclass(frozen=True)
class Served:
    """A model that is offered.

    Attributes:
        name: in URLs.
        root: the folder of its run or ensemble.
        version: as clients call it.
        sha256: see `VersionSpec.sha256`; of registered models.
    """

    name: str
    root: Path
    version: str = "1"
    sha256: tuple[tuple[str, str], ...] = ()

    @property
    def spec(self) -> VersionSpec:
        """What the operator is asked for."""
        return VersionSpec(self.name, self.version, str(self.root.resolve()), self.sha256)


def find_served(targets: Sequence[str], runs_dir: Path) -> list[Served]:
    """The models of several targets, each `TARGET`, `NAME=TARGET` or `NAME@VERSION=TARGET`.

    A sweep offers its ensemble (its best trial where there is none) under its own name, and its
    student, where there is one, as `<name>-student`; under a name that is given, only the former.
    A run inside a sweep is called `<sweep>-<run>`, and a registered model as the registry does,
    its version too.

    Raises:
        RunFolderError: if a target does not exist or holds nothing trained.
        UserError: if two targets would have one name and version.
    """
    found: dict[tuple[str, str], Served] = {}
    for one in (one for text in targets for one in _offered(text, runs_dir)):
        had = found.setdefault((one.name, one.version), one)
        if had.root != one.root:
            raise UserError(
                f"two models would be called {one.name!r}, version {one.version!r}: {had.root} "
                f"and {one.root}; call one of them NAME=TARGET or {one.name}@VERSION=TARGET"
            )
    return list(found.values())


def find_one(target: str, runs_dir: Path) -> Served:
    """The one model that answers for a target; of a sweep its ensemble or best trial.

    Raises:
        RunFolderError: if the target does not exist or holds nothing trained.
    """
    if target.startswith(PREFIX):
        version, found = Registry(runs_dir).checked(target.removeprefix(PREFIX))
        files = tuple(sorted(version.files.items()))
        return Served(version.name, found.path, str(version.version), files)
    found = resolve_target(target, runs_dir)
    return Served(public_name(found), _answering(found))


def find_loadable(target: str, models_root: Path) -> Served:
    """The same for a target that came over HTTP: nothing outside the runs' folder can be named.

    Args:
        target: `registry:NAME[@VERSION]`, or the name of a run, sweep or ensemble below
            `models_root`, such as `fmnist/trials/003`.

    Raises:
        RunFolderError: if it does not exist or holds nothing trained.
        UserError: if it is no such name.
    """
    if target.startswith(PREFIX):
        return find_one(target, models_root)
    if not _BELOW.fullmatch(target):
        raise UserError(
            f"a target is registry:NAME, or a name below the runs' folder, not {target[:100]!r}"
        )
    path = models_root.resolve() / target
    if path.exists() and path.resolve() != path:
        raise UserError(f"{target!r} is a link, and links are not followed; name the folder itself")
    return find_one(str(path), models_root)


def _offered(text: str, runs_dir: Path) -> list[Served]:
    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    if named:
        one = find_one(named["target"], runs_dir)
        return [replace(one, name=named["name"], version=named["version"] or one.version)]
    if text.startswith(PREFIX):
        return [find_one(text, runs_dir)]
    target = resolve_target(text, runs_dir)
    name = public_name(target)
    offered = [Served(name, _answering(target))]
    if target.kind == "sweep" and target.paths.student.model_json.exists():
        offered.append(Served(f"{name}-student", target.paths.student.root))
    return offered


def _answering(target: Target) -> Path:
    """The folder that answers: the target's own, or of a sweep its ensemble or best trial."""
    if target.kind != "sweep":
        return target.path
    if target.paths.ensemble_json.exists():
        return target.paths.ensemble
    # Imports Optuna, which takes a second.
    from orchestrator.sweep.leaderboard import leaderboard

    trials = [target.paths.trial(row.id) for row in leaderboard(target.paths)]
    trained = next((trial for trial in trials if trial.model_json.exists()), None)
    if trained is None:
        raise RunFolderError(f"{target.path} has no trained trial yet; finish it with --resume")
    return trained.root


def public_name(target: Target) -> str:
    """What clients call a target, fit for a URL."""
    path = target.path
    parents = [path.parent.parent] if path.parent.name == "trials" else []
    parents += [path.parent] if path.name in _PARTS else []
    inside = next((parent for parent in parents if RunPaths(parent).kind == "sweep"), None)
    name = f"{inside.name}-{path.name}" if inside else path.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)
