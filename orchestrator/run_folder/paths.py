"""The run folder: every path inside it, and what a user's TARGET means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.config.user_code import CODE
from orchestrator.errors import RunFolderError, suggest


@dataclass(frozen=True)
class RunPaths:
    """Every path inside one run, sweep or ensemble folder; nothing needs to exist.

    Attributes:
        root: the folder itself, such as ``runs/fmnist`` or ``runs/fmnist/trials/003``.
    """

    root: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.name

    # --- every run -------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        """The resolved configuration, which repeats the run."""
        return self.root / "config.yaml"

    @property
    def env(self) -> Path:
        """Code commit, versions, hardware, data digest, seeds."""
        return self.root / "env.json"

    @property
    def status(self) -> Path:
        """State, best and last metrics, timings, why it ended."""
        return self.root / "status.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, epoch, split, values, wall time."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object a line: restarts, faults, decisions of `auto`."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, each named by its step."""
        return self.root / "checkpoints"

    @property
    def code(self) -> Path:
        """Folder of copies of the user's own modules, where the file names any."""
        return self.root / CODE

    @property
    def logs(self) -> Path:
        """Folder of the ranks' logs."""
        return self.root / "logs"

    def rank_log(self, rank: int) -> Path:
        """One rank's log."""
        return self.logs / f"rank-{rank}.log"

    @property
    def model(self) -> Path:
        """Weights of the exported best model."""
        return self.root / "model.safetensors"

    @property
    def model_json(self) -> Path:
        """The exported model's architecture, preprocessing and label names."""
        return self.root / "model.json"

    def predictions(self, split: str) -> Path:
        """Ids, labels and logits of one split, by the best checkpoint."""
        return self.root / "predictions" / f"{split}.parquet"

    @property
    def lease(self) -> Path:
        """Who writes this run now."""
        return self.root / "lease.json"

    # --- a sweep ---------------------------------------------------------------------------

    @property
    def sweep_json(self) -> Path:
        """What was searched and how it went."""
        return self.root / "sweep.json"

    @property
    def leaderboard(self) -> Path:
        """The trials, best first, beside ensemble, student and baseline."""
        return self.root / "leaderboard.json"

    @property
    def study(self) -> Path:
        """The Optuna study (SQLite)."""
        return self.root / "study.db"

    @property
    def trials(self) -> Path:
        """Folder of the trials."""
        return self.root / "trials"

    def trial(self, id: str | int) -> RunPaths:
        """One trial's run folder; numbers are written with three digits, as in ``003``."""
        return RunPaths(self.trials / (f"{id:03d}" if isinstance(id, int) else id))

    @property
    def ensemble(self) -> Path:
        """Folder of the sweep's ensemble."""
        return self.root / "ensemble"

    @property
    def ensemble_json(self) -> Path:
        """The sweep's ensemble: its members and their weights."""
        return self.ensemble / "ensemble.json"

    @property
    def student(self) -> RunPaths:
        """The distilled student's run folder."""
        return RunPaths(self.root / "student")

    @property
    def baseline(self) -> RunPaths:
        """Run folder of the same student trained without a teacher."""
        return RunPaths(self.root / "baseline")

    # --- what is there ---------------------------------------------------------------------

    def trial_folders(self) -> list[RunPaths]:
        """The trials that exist, by id."""
        if not self.trials.is_dir():
            return []
        return [RunPaths(path) for path in sorted(self.trials.iterdir()) if path.is_dir()]

    @property
    def kind(self) -> Kind | None:
        """What the folder holds, or None when it is none of ours."""
        if any(path.exists() for path in (self.sweep_json, self.study, self.trials)):
            return "sweep"
        if (self.root / "ensemble.json").exists():
            return "ensemble"
        if any(path.exists() for path in (self.config, self.model_json, self.status)):
            return "run"
        return None


Kind = Literal["run", "sweep", "ensemble"]


@dataclass(frozen=True)
class Target:
    """What a user named: a run, a sweep or an ensemble.

    Attributes:
        path: the folder; an ensemble's holds `ensemble.json` itself.
    """

    kind: Kind
    path: Path

    @property
    def paths(self) -> RunPaths:
        """Paths inside the folder."""
        return RunPaths(self.path)


def resolve_target(text: str | Path, runs_dir: Path) -> Target:
    """Finds a run, a sweep or an ensemble.

    Args:
        text: a folder, an ``ensemble.json``, a name below `runs_dir` such as ``fmnist`` or
            ``fmnist/trials/003``, or ``registry:NAME``, ``registry:NAME@3``,
            ``registry:NAME@production``.
        runs_dir: where names are looked up.

    Raises:
        RunFolderError: naming the nearest names that exist; or if a registered model's files are
            gone or were changed.
    """
    if str(text).startswith("registry:"):
        from orchestrator.run_folder.registry import PREFIX, Registry

        return Registry(runs_dir).checked(str(text).removeprefix(PREFIX))[1]
    for candidate in (Path(text), runs_dir / text):
        folder = candidate.parent if candidate.name == "ensemble.json" else candidate
        kind = RunPaths(folder).kind
        if kind:
            return Target("ensemble" if folder != candidate else kind, folder.resolve())
    for candidate in (Path(text), runs_dir / text):
        if candidate.is_dir():
            raise RunFolderError(f"{candidate} is neither a run, a sweep nor an ensemble")
    known = [str(paths.root.relative_to(runs_dir)) for paths in find_runs(runs_dir)]
    near = suggest(text, known) if known else f"there is no run in {runs_dir}"
    raise RunFolderError(f"{text} is not a run, a sweep or an ensemble; {near}")


def find_runs(runs_dir: Path) -> list[RunPaths]:
    """Every run, sweep and ensemble below `runs_dir`, with the parts of each sweep behind it."""
    found: list[RunPaths] = []
    for folder in sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []:
        paths = RunPaths(folder)
        if not folder.is_dir() or paths.kind is None:
            continue
        found.append(paths)
        parts = [*paths.trial_folders(), RunPaths(paths.ensemble), paths.student, paths.baseline]
        found += [part for part in parts if part.kind is not None]
    return found
