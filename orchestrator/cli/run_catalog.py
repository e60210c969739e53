"""What `orch runs` knows of run folders; it reads files only, never torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.yaml import parse_yaml
from orchestrator.errors import ConfigError, RunFolderError
from orchestrator.files import read_json
from orchestrator.run_folder.checkpoint import Checkpoint, Checkpoints, CheckpointStore
from orchestrator.run_folder.lease import Lease
from orchestrator.run_folder.opening import run_state
from orchestrator.run_folder.paths import RunPaths, find_runs, resolve_target
from orchestrator.run_folder.status import Status


@dataclass(frozen=True)
class Summary:
    """One line of the list.

    Attributes:
        name: below the runs folder, as commands take it.
        kind: run, sweep or ensemble.
        state: as in `status.json`; ``stopped`` when the process is gone without a word.
        best: a run's or a sweep's monitored metric, an ensemble's accuracy on `select`.
        epoch: how far a run is.
        trials: of a sweep.
        age: seconds since anything was written.
    """

    name: str
    kind: str
    state: str
    best: float | None
    epoch: float | None
    trials: int | None
    age: float


def summaries(runs_dir: Path, everything: bool) -> list[Summary]:
    """The runs, sweeps and ensembles in a folder, the newest first.

    Args:
        everything: list the parts of each sweep too.
    """
    found = (paths for paths in find_runs(runs_dir) if everything or paths.root.parent == runs_dir)
    return sorted((_summary(paths, runs_dir) for paths in found), key=lambda one: one.age)


def _summary(paths: RunPaths, runs_dir: Path) -> Summary:
    status = _status(paths)
    kind = paths.kind or "run"
    best = status.best.value if status and status.best else None
    if kind == "sweep":
        best = _first_value(paths)
    if kind == "ensemble":
        best = _read(paths.root / "ensemble.json").get("select", {}).get("accuracy")
    return Summary(
        name=str(paths.root.relative_to(runs_dir)),
        kind=kind,
        state="done" if kind == "ensemble" and status is None else _state(paths),
        best=best,
        epoch=status.epoch if status and kind == "run" else None,
        trials=len(paths.trial_folders()) if kind == "sweep" else None,
        age=_age(paths),
    )


def details(name: str, runs_dir: Path) -> dict[str, Any]:
    """Everything about one run, sweep or ensemble, as a JSON value.

    Raises:
        RunFolderError: if there is none of that name.
    """
    paths = resolve_target(name, runs_dir.resolve()).paths
    status = _read(paths.status)
    if paths.kind == "ensemble" and not status:
        return {"path": str(paths.root), "kind": "ensemble", **_read(paths.root / "ensemble.json")}
    status.pop("format", None)
    environment = _read(paths.env)
    return {
        "path": str(paths.root),
        **status,
        "kind": paths.kind,
        "state": _state(paths),
        "checkpoints": [
            {"step": one.step, "metric": one.metric, "bytes": one.size}
            for one in Checkpoints(paths.checkpoints).valid()
        ],
        "trials": [trial.name for trial in paths.trial_folders()],
        "versions": environment.get("versions", {}),
        "hardware": environment.get("hardware", {}),
        "data": environment.get("data", {}),
    }


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; every row has one value for each of `names`.

    Attributes:
        config: by dotted key, the values that are not the same in all.
        metrics: state, steps, and the metrics at each run's best evaluation.
    """

    names: list[str]
    config: dict[str, list[Any]]
    metrics: dict[str, list[Any]]


def compare(names: Sequence[str], runs_dir: Path) -> Comparison:
    """Compares configurations and results.

    Raises:
        RunFolderError: if one of them does not exist, or is an ensemble.
    """
    targets = [resolve_target(name, runs_dir.resolve()) for name in names]
    for name, target in zip(names, targets, strict=True):
        if target.kind == "ensemble":
            raise RunFolderError(f"{name} is an ensemble; only runs and sweeps are compared")
    configs = [dict(_flat(_config(target.paths))) for target in targets]
    rows = _rows(configs)
    differing = {key: row for key, row in rows.items() if any(item != row[0] for item in row)}
    differing.pop("name", None)
    return Comparison(list(names), differing, _rows([_results(one.paths) for one in targets]))


@dataclass(frozen=True)
class Removal:
    """Checkpoints of one run that may go."""

    name: str
    paths: RunPaths
    checkpoints: tuple[Checkpoint, ...]

    @property
    def size(self) -> int:
        """Bytes that would be freed."""
        return sum(one.size for one in self.checkpoints)


def plan_removals(names: Sequence[str], runs_dir: Path, failed: bool) -> list[Removal]:
    """What may be removed: a finished run keeps its best checkpoint, or its newest without one.

    Runs that may still go on keep everything.

    Args:
        names: runs, or sweeps for all their parts; empty for everything below `runs_dir`.
        failed: also remove every checkpoint of failed runs, which then can't be resumed.
    """
    runs_dir = runs_dir.resolve()
    roots = [resolve_target(name, runs_dir).path for name in names] or [runs_dir]
    plan = []
    for paths in _runs_below(roots, runs_dir):
        checkpoints = Checkpoints(paths.checkpoints).valid()
        state = _state(paths)
        if state in ("done", "pruned"):
            kept = _kept_step(paths, checkpoints)
            checkpoints = [one for one in checkpoints if one.step != kept]
        elif not (failed and state == "failed"):
            continue
        if checkpoints:
            plan.append(Removal(_name(paths, runs_dir), paths, tuple(checkpoints)))
    return plan


def remove(removal: Removal) -> None:
    """Removes what `plan_removals` found.

    Raises:
        RunFolderError: if a process writes the run by now.
    """
    with Lease(removal.paths.lease):
        store = CheckpointStore(removal.paths.checkpoints)
        for one in removal.checkpoints:
            store.remove(one)


def _runs_below(roots: Sequence[Path], runs_dir: Path) -> Iterator[RunPaths]:
    for paths in find_runs(runs_dir):
        if any(paths.root.is_relative_to(root) for root in roots):
            yield paths
    for root in roots:
        if not root.is_relative_to(runs_dir):
            yield from [RunPaths(root), *RunPaths(root).trial_folders()]


def _name(paths: RunPaths, runs_dir: Path) -> str:
    inside = paths.root.is_relative_to(runs_dir)
    return str(paths.root.relative_to(runs_dir) if inside else paths.root)


def _kept_step(paths: RunPaths, checkpoints: Sequence[Checkpoint]) -> int | None:
    status = _status(paths)
    best = status.best.step if status and status.best else None
    steps = [one.step for one in checkpoints]
    return best if best in steps else max(steps, default=None)


def _results(paths: RunPaths) -> dict[str, Any]:
    status = _status(paths)
    if status is None:
        return {"state": _state(paths)}
    best = status.best
    metrics = dict(best.metrics) if best else dict(status.last)
    seconds = round(sum(status.timings.values()), 1)
    value = best.value if best else None
    if paths.kind == "sweep":
        value = _first_value(paths)
    return {
        "state": _state(paths),
        "step": status.step,
        "best": value,
        **metrics,
        "seconds": seconds,
    }


def _first_value(paths: RunPaths) -> float | None:
    trials = _read(paths.leaderboard).get("trials") or [{}]
    value: float | None = trials[0].get("value")
    return value


def _rows(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key) for column in columns] for key in keys}


def _config(paths: RunPaths) -> Mapping[str, Any]:
    try:
        return dict(parse_yaml(paths.config.read_text(), str(paths.config)).values)
    except (OSError, ConfigError) as error:
        raise RunFolderError(f"{paths.config} can't be read: {error}") from None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _state(paths: RunPaths) -> str:
    try:
        return run_state(paths)
    except RunFolderError:
        return "unreadable"


def _status(paths: RunPaths) -> Status | None:
    try:
        return Status.read(paths.status)
    except RunFolderError:
        return None


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def _age(paths: RunPaths) -> float:
    candidates = (paths.metrics, paths.status, paths.root / "ensemble.json", paths.root)
    times = [path.stat().st_mtime for path in candidates if path.exists()]
    return max(0.0, time.time() - max(times))
