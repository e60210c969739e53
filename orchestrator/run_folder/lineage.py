"""Where a trained model comes from, and the files that it consists of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from orchestrator.errors import RunFolderError
from orchestrator.files import read_json
from orchestrator.run_folder.paths import RunPaths, Target


def model_files(target: Target) -> dict[str, str]:
    """The sha256 of every file that answering needs, by path relative to the target's folder.

    A run's are its weights, their description, and the user's modules that it keeps; an
    ensemble's its description, and those of its members.

    Raises:
        RunFolderError: if nothing trained is there.
    """
    root = target.path.resolve()
    found = [root / "ensemble.json"] if target.kind == "ensemble" else []
    for run in _runs_of(target):
        paths = RunPaths(run)
        if not paths.model.exists() or not paths.model_json.exists():
            raise RunFolderError(f"{run} has no trained model; finish the run first")
        found += [paths.model, paths.model_json]
        kept = (path for path in paths.code.rglob("*") if "__pycache__" not in path.parts)
        found += sorted(path for path in kept if path.is_file())
    return {os.path.relpath(path, root): _sha256(path) for path in found}


def describe_origin(target: Target, runs_dir: Path) -> dict[str, Any]:
    """Source, sweep, digests, commit and metrics; JSON values, None where nothing is known.

    Args:
        target: a run or an ensemble.
        runs_dir: what the source is relative to.
    """
    root, runs = target.path.resolve(), _runs_of(target)
    environments = [_content(RunPaths(run).env) for run in runs]
    specs = [_content(RunPaths(run).model_json) for run in runs]
    return {
        "source": _within(root, runs_dir),
        "sweep": next((_within(one, runs_dir) for one in root.parents[:2] if _is_sweep(one)), None),
        "members": [_within(run, runs_dir) for run in runs] if target.kind == "ensemble" else [],
        "config_digest": _one([_content(RunPaths(run).status).get("digest") for run in runs]),
        "data_digest": _one([spec.get("data_digest") for spec in specs]),
        "split_digest": _one([spec.get("split_digest") for spec in specs]),
        "commit": _one([(one.get("code") or {}).get("commit") for one in environments]),
        "modified": any((one.get("code") or {}).get("modified") for one in environments),
        "metrics": _metrics(target),
    }


def _metrics(target: Target) -> dict[str, float]:
    if target.kind == "ensemble":
        select = _content(target.path / "ensemble.json").get("select") or {}
        return {f"select/{name}": value for name, value in select.items()}
    status = _content(target.paths.status)
    best = status.get("best") or {}
    return dict(best.get("metrics") or status.get("last") or {})


def _runs_of(target: Target) -> list[Path]:
    """The run folders whose networks answer."""
    root = target.path.resolve()
    if target.kind != "ensemble":
        return [root]
    members = _content(root / "ensemble.json").get("members") or []
    return [(root / one["path"]).resolve() for one in members]


def _one(values: list[Any]) -> Any:
    """What all have in common, or the list where they differ."""
    different = list(dict.fromkeys(value for value in values if value))
    return different[0] if len(different) == 1 else different or None


def _is_sweep(folder: Path) -> bool:
    return RunPaths(folder).kind == "sweep"


def _within(path: Path, folder: Path) -> str:
    folder = folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
