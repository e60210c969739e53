"""From a teacher (a run or an ensemble) to the file of a student that learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive
from orchestrator.config.pipeline import DistillConfig
from orchestrator.ensemble.combine import combine
from orchestrator.errors import RunFolderError
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.paths import RunPaths, Target
from orchestrator.run_folder.predictions import Predictions, write_predictions


@dataclass(frozen=True)
class Teacher:
    """Who a student learns from.

    Attributes:
        folder: the run's or the ensemble's; its predictions on `train` are the soft targets.
        members: run folders with their weights.
        combine: how the members' answers become one.
    """

    folder: Path
    members: Sequence[tuple[Path, float]]
    combine: str = "probabilities"


def find_teacher(target: Target) -> Teacher:
    """The teacher that a user named; a sweep stands for its ensemble.

    Raises:
        RunFolderError: if a sweep has no ensemble, or the ensemble is damaged.
    """
    if target.kind == "run":
        return Teacher(target.path, [(target.path, 1.0)])
    folder = target.paths.ensemble if target.kind == "sweep" else target.path
    if not (folder / "ensemble.json").exists():
        raise RunFolderError(f"{target.path} has no ensemble; make one with `orch ensemble`")
    ensemble = read_ensemble(folder)
    members = [(member.path, member.weight) for member in ensemble.members]
    return Teacher(folder, members, ensemble.combine)


def write_soft_targets(teacher: Teacher, answers: Sequence[Predictions]) -> Path:
    """Combines the members' answers on the train split into the teacher's own.

    Kept as log-probabilities, whose softmax at temperature 1 is the ensemble's answer.
    """
    path = RunPaths(teacher.folder).predictions("train")
    if len(answers) == 1:
        together = answers[0]
    else:
        weights = np.asarray([weight for _, weight in teacher.members])
        probabilities = combine(answers, weights, teacher.combine)
        logits = np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)
        together = Predictions(answers[0].ids, answers[0].labels, logits)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(path, together)
    return path


def student_config(
    config: ExperimentConfig, distill: DistillConfig, teacher: Teacher
) -> ExperimentConfig:
    """The student's file: this one with `distill.set` applied and the task replaced.

    Raises:
        ConfigError: if `distill.set` does not fit.
    """
    loss = getattr(config.task, "loss", None)
    task: dict[str, Any] = {
        "type": "distill",
        "teacher": str(teacher.folder),
        "temperature": distill.temperature,
        "soft_weight": distill.soft_weight,
    }
    if loss is not None:
        task["loss"] = loss.model_dump(mode="json")
    return derive(baseline_config(config, distill, name="student"), {"task": task})


def baseline_config(
    config: ExperimentConfig, distill: DistillConfig, name: str = "baseline"
) -> ExperimentConfig:
    """The same student without a teacher, to compare with.

    Raises:
        ConfigError: if `distill.set` does not fit.
    """
    single = {"name": name, "sweep": None, "ensemble": None, "distill": None}
    return derive(config, {**distill.set, **single})
