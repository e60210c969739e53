"""The trials of a sweep, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from orchestrator.errors import RunFolderError
from orchestrator.files import write_json
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.status import Status
from orchestrator.sweep.events import State
from orchestrator.sweep.study import best_value, load_study, trial_id

_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        value: the monitored metric's best, and `step` and `epoch` where it was; None without one.
        params: values by dotted key of the file.
        seconds: wall time over all attempts that ended.
        why: why it failed, or when it was pruned.
        folder: relative to the sweep's.
    """

    id: str
    state: State
    value: float | None
    step: int | None
    epoch: float | None
    params: Mapping[str, Any]
    seconds: float
    why: str
    folder: str


def leaderboard(paths: RunPaths) -> list[Row]:
    """Reads a sweep's trials, the best value first; those without a value come last, by id.

    Raises:
        RunFolderError: if the folder holds no study.
    """
    study = load_study(paths.study)
    if study is None or "mode" not in study.user_attrs:
        return []
    mode = study.user_attrs["mode"]
    rows = [_row(paths, trial, study.user_attrs) for trial in study.get_trials(deepcopy=False)]
    sign = -1 if mode == "max" else 1
    return sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0), row.id))


def write_leaderboard(paths: RunPaths, rows: Sequence[Row]) -> None:
    """Writes `leaderboard.json`, whole or not at all.

    Raises:
        RunFolderError: if the folder holds no study.
    """
    study = load_study(paths.study)
    if study is None:
        raise RunFolderError(f"{paths.study} holds no study yet; start the sweep first")
    content = {
        "format": 1,
        "monitor": study.user_attrs["monitor"],
        "mode": study.user_attrs["mode"],
        "trials": [asdict(row) for row in rows],
    }
    write_json(paths.leaderboard, content)


def _row(
    paths: RunPaths, trial: optuna.trial.FrozenTrial, study_attributes: Mapping[str, Any]
) -> Row:
    name = trial_id(trial.number)
    attributes = trial.user_attrs
    value = best_value(trial, study_attributes["mode"])
    # The first of equals, as the run's own best checkpoint is.
    reached = [step for step, one in sorted(trial.intermediate_values.items()) if one == value]
    step = reached[0] if reached else None
    # A trial with another batch size than the file's has epochs of its own.
    per_epoch = attributes.get("steps_per_epoch", study_attributes["steps_per_epoch"])
    why = attributes.get("why", "")
    if not why and trial.state == TrialState.PRUNED and "pruned_at" in attributes:
        why = f"pruned at step {attributes['pruned_at']}"
    return Row(
        id=name,
        state=_STATES[trial.state],
        value=value,
        step=step,
        epoch=None if step is None else step / per_epoch,
        params=attributes.get("overrides", trial.params),
        seconds=round(attributes.get("seconds", 0.0), 3),
        why=why or _why_in_folder(paths.trial(name).status, trial.state),
        folder=attributes.get("folder", str(paths.trial(name).root.relative_to(paths.root))),
    )


def _why_in_folder(path: Path, state: TrialState) -> str:
    """What the run itself says, for a trial that no planner was told the end of."""
    if state != TrialState.RUNNING:
        return ""
    try:
        status = Status.read(path)
    except RunFolderError:
        return ""
    return status.why if status else ""
