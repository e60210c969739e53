"""The comparison at the end of a pipeline: who is how good on the test split, at what cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from orchestrator.ensemble.combine import combine
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import accuracy, nll, read_predictions
from orchestrator.run_folder.status import Status


@dataclass(frozen=True)
class Line:
    """One model's line.

    Attributes:
        accuracy, nll: on the table's split.
        parameters: of all members together.
        monitored: best value of the monitored metric on `val`; None for an ensemble.
        seconds: spent on training; None for an ensemble.
    """

    name: str
    folder: str
    accuracy: float
    nll: float
    samples: int
    parameters: int
    members: int = 1
    monitored: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Table:
    """The comparison; `split` is `test` where the data has one."""

    split: str
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        return {"format": 1, "split": self.split, "results": [asdict(line) for line in self.lines]}

    def line(self, name: str) -> Line | None:
        """The line of a name, where there is one."""
        return next((line for line in self.lines if line.name == name), None)


def run_line(name: str, root: Path, split: str) -> Line:
    """The line of one run, from its predictions on `split`."""
    paths = RunPaths(root)
    found = read_predictions(paths.predictions(split))
    probabilities = found.probabilities()
    status = Status.read(paths.status)
    return Line(
        name,
        str(root),
        accuracy(probabilities, found.labels),
        nll(probabilities, found.labels),
        len(found),
        count_parameters(paths.model),
        monitored=status.best.value if status and status.best else None,
        seconds=status.timings.get("train") if status else None,
    )


def ensemble_line(name: str, folder: Path, split: str) -> Line:
    """The line of an ensemble, from its members' predictions on `split`."""
    ensemble = read_ensemble(folder)
    roots = [member.path for member in ensemble.members]
    found = [read_predictions(RunPaths(root).predictions(split)) for root in roots]
    weights = np.asarray([member.weight for member in ensemble.members])
    probabilities = combine(found, weights, ensemble.combine)
    return Line(
        name,
        str(folder),
        accuracy(probabilities, found[0].labels),
        nll(probabilities, found[0].labels),
        len(found[0]),
        sum(count_parameters(RunPaths(root).model) for root in roots),
        members=len(roots),
    )


def count_parameters(weights: Path) -> int:
    """Numbers in a weights file, running statistics left out."""
    skipped = ("running_mean", "running_var", "num_batches_tracked")
    with safe_open(weights, framework="np") as file:
        return sum(
            int(np.prod(file.get_slice(name).get_shape()))
            for name in file.keys()  # noqa: SIM118
            if not name.endswith(skipped)
        )
