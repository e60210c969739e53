"""The trackers' seam, and the one that tells all the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.run_folder.paths import RunPaths

JobType = Literal["train", "trial", "student", "baseline", "ensemble"]


@dataclass(frozen=True)
class Artifact:
    """Files with a name: a model or an ensemble.

    Attributes:
        files: by the name they get within the artifact.
    """

    name: str
    kind: Literal["model", "ensemble"]
    files: Mapping[str, Path]


class Tracker(Protocol):
    """Is told about one run. No call waits for a network or fails because of one."""

    def start(
        self, config: Mapping[str, Any], *, name: str, group: str | None, job_type: str
    ) -> None:
        """Begins, or goes on with, a run.

        Args:
            config: the resolved file.
            name: what people see, such as ``fmnist/trials/003``.
            group: the sweep that the run belongs to.
            job_type: train, trial, student, baseline or ensemble.
        """
        ...

    def log(self, step: int, values: Mapping[str, float], *, epoch: float) -> None:
        """Takes metrics by ``<split>/<name>``."""
        ...

    def summary(self, values: Mapping[str, float]) -> None:
        """Takes the metrics that stand for the whole run."""
        ...

    def use(self, artifact: Artifact) -> None:
        """Notes an input of the run, such as a student's teacher."""
        ...

    def finish(self, state: str, outputs: Sequence[Artifact] = ()) -> None:
        """Ends the run in a state of `status.json`, with what it made."""
        ...


class TrackerGroup:
    """Tells several trackers the same; with none, tells nobody."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def start(
        self, config: Mapping[str, Any], *, name: str, group: str | None, job_type: str
    ) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.start(config, name=name, group=group, job_type=job_type)

    def log(self, step: int, values: Mapping[str, float], *, epoch: float) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.log(step, values, epoch=epoch)

    def summary(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.summary(values)

    def use(self, artifact: Artifact) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.use(artifact)

    def finish(self, state: str, outputs: Sequence[Artifact] = ()) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.finish(state, outputs)


class Rank(Protocol):
    """What is needed of a rank; `orchestrator.host.Worker` has it."""

    @property
    def is_main(self) -> bool:
        """Whether this rank reports."""
        ...


def build_tracker(
    config: ExperimentConfig,
    paths: RunPaths,
    worker: Rank,
    *,
    group: str | None = None,
    job_type: str = "train",
) -> Tracker:
    """The started trackers of a run: its own metrics file, and W&B where `track` asks for it.

    A student's teacher is noted as its input. Ranks other than the first get a tracker that
    tells nobody.
    """
    from orchestrator.tracking.run_file import RunFileTracker
    from orchestrator.tracking.weights_biases import WandbTracker

    if not worker.is_main:
        return TrackerGroup()
    trackers: list[Tracker] = [RunFileTracker(paths)]
    if config.track.wandb is not None and config.track.wandb.mode != "disabled":
        trackers.append(WandbTracker(config.track.wandb, paths))
    tracker = TrackerGroup(*trackers)
    tracker.start(
        config.model_dump(mode="json"), name=display_name(paths), group=group, job_type=job_type
    )
    teacher = artifact_of(RunPaths(Path(getattr(config.task, "teacher", ""))))
    if teacher is not None:
        tracker.use(teacher)
    return tracker


def track_ensemble(
    config: ExperimentConfig,
    paths: RunPaths,
    members: Sequence[RunPaths],
    values: Mapping[str, float],
    *,
    group: str | None = None,
) -> None:
    """Tells the trackers of a finished ensemble, its members as inputs.

    Args:
        paths: the folder that holds ``ensemble.json``.
        values: metrics by ``<split>/<name>``.
    """
    from orchestrator.tracking.weights_biases import WandbTracker

    if config.track.wandb is None or config.track.wandb.mode == "disabled":
        return
    tracker = WandbTracker(config.track.wandb, paths)
    name = display_name(paths)
    tracker.start(config.model_dump(mode="json"), name=name, group=group, job_type="ensemble")
    for member in members:
        found = artifact_of(member)
        if found is not None:
            tracker.use(found)
    tracker.summary(values)
    made = artifact_of(paths)
    tracker.finish("done", [made] if made else [])


def artifact_of(paths: RunPaths) -> Artifact | None:
    """The exported model or the ensemble in a folder, or None when it holds neither."""
    for kind, names in _CONTENT.items():
        files = {name: paths.root / name for name in names}
        if paths.root.name and all(path.is_file() for path in files.values()):
            return Artifact(f"{kind}-{_safe(paths)}", kind, files)
    return None


def display_name(paths: RunPaths) -> str:
    """A run's name for people: a sweep's parts carry the sweep's, as in ``fmnist/trials/003``."""
    root = paths.root.resolve()
    if root.parent.name == "trials":
        return "/".join(root.parts[-3:])
    if RunPaths(root.parent).kind == "sweep":
        return f"{root.parent.name}/{root.name}"
    return root.name


_CONTENT: dict[Literal["model", "ensemble"], tuple[str, ...]] = {
    "ensemble": ("ensemble.json",),
    "model": ("model.safetensors", "model.json"),
}


def _safe(paths: RunPaths) -> str:
    # Two folders of the same name stay two artifacts; the name itself stays readable.
    where = hashlib.sha256(str(paths.root.resolve()).encode()).hexdigest()[:8]
    return f"{display_name(paths).replace('/', '-')[-100:]}-{where}"
