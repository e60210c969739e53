"""From a teacher (a run or an ensemble) to the file of a student that learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive
from orchestrator.config.pipeline import DistillConfig
from orchestrator.ensemble.combine import combine
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import Predictions, write_predictions
from orchestrator.teacher import Teacher


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
    asked = config.task.model_dump(mode="json")
    # What the labels teach is the baseline's loss, or the two could not be compared.
    task: dict[str, Any] = {
        key: asked[key] for key in ("loss", "auxiliary_weight") if asked.get(key) is not None
    }
    task |= {
        "type": "distill",
        "teacher": str(teacher.folder),
        "temperature": distill.temperature,
        "soft_weight": distill.soft_weight,
        "teacher_sees": distill.teacher_sees,
        "soft_loss": distill.soft_loss.model_dump(mode="json"),
    }
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
