"""From what a user names on the command line to the models that a server offers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import RunFolderError, UserError
from orchestrator.run_folder.paths import RunPaths, Target, resolve_target

_PARTS = ("ensemble", "student", "baseline")


@dataclass(frozen=True)
class Served:
    """A model that is offered: its name in URLs, and the folder of its run or ensemble."""

    name: str
    root: Path
    version: str = "1"


def find_served(targets: Sequence[str], runs_dir: Path) -> list[Served]:
    """The models of several targets.

    A sweep offers its ensemble (its best trial where there is none) under its own name, and its
    student, where there is one, as `<name>-student`. A run inside a sweep is called
    `<sweep>-<run>`.

    Raises:
        RunFolderError: if a target does not exist or holds nothing trained.
        UserError: if two targets would have one name.
    """
    found = [one for text in targets for one in _offered(resolve_target(text, runs_dir))]
    by_name: dict[str, Path] = {}
    for one in found:
        if by_name.setdefault(one.name, one.root) != one.root:
            raise UserError(
                f"two models would be called {one.name!r}: {by_name[one.name]} and {one.root}; "
                "rename one of the folders, or serve them on two ports"
            )
    return [Served(name, root) for name, root in by_name.items()]


def find_one(target: str, runs_dir: Path) -> Served:
    """The one model that answers for a target; of a sweep its ensemble or best trial.

    Raises:
        RunFolderError: if the target does not exist or holds nothing trained.
    """
    return _offered(resolve_target(target, runs_dir))[0]


def _offered(target: Target) -> list[Served]:
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
