"""Trials that train nothing but behave like real ones: folders, checkpoints, metrics.

As a program it runs a sweep in a folder and kills itself after a number of reports:
``python fake_trials.py FOLDER SAMPLER SCHEDULER REPORTS WHEN``.
"""

import json
import os
import signal
import sys
from pathlib import Path

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.errors import ConfigError
from orchestrator.host import Resources, TrialJob
from orchestrator.local_host import InProcessHost
from orchestrator.run_folder.paths import RunPaths
from orchestrator.sweep.planner import Planner
from orchestrator.tracking.run_file import RunFileTracker

STEPS_PER_EPOCH, EPOCHS = 10, 8
SPACE = {
    "optimizer.lr": {"type": "log_uniform", "low": 1e-4, "high": 1e-1},
    "optimizer.weight_decay": {"type": "uniform", "low": 0.0, "high": 1.0},
}


def make_config(trials=6, seed=1, mode="max", monitor="val/accuracy", evaluate=None, **sweep):
    return ExperimentConfig.model_validate(
        {
            "name": "fake",
            "seed": seed,
            "data": {"source": {"type": "digits"}},
            "model": {"type": "import", "target": "torch.nn:Linear"},
            "train": {"for": f"{EPOCHS} epochs"},
            "evaluate": {"every": "1 epoch", "monitor": monitor, "mode": mode, **(evaluate or {})},
            "sweep": {"trials": trials, "space": SPACE, **sweep},
        }
    )


def curve(overrides, epoch):
    """Rises with the epoch to a level that the parameters decide; no two trials are equal."""
    level = 1 - overrides["optimizer.weight_decay"]
    return level * (1 - 0.5**epoch) + overrides["optimizer.lr"]


def fake_trial(*, worker, spec, value=curve):
    """One evaluation an epoch, from where the folder's checkpoint is."""
    paths = RunPaths(spec.folder)
    paths.root.mkdir(parents=True, exist_ok=True)
    metrics = RunFileTracker(paths)
    checkpoint = paths.root / "checkpoint.json"
    done = json.loads(checkpoint.read_text()) if spec.resume and checkpoint.exists() else 0
    paths.status.write_text('{"format": 1, "state": "running"}')
    for epoch in range(done + 1, EPOCHS + 1):
        step, values = epoch * STEPS_PER_EPOCH, {"val/accuracy": value(spec.overrides, epoch)}
        metrics.log(step, values, epoch=epoch)
        checkpoint.write_text(str(epoch))
        yield {"step": step, "epoch": float(epoch), "values": values}
    paths.status.write_text('{"format": 1, "state": "done"}')


def job_of(spec, call=fake_trial, **arguments):
    return TrialJob(spec.id, call, {"spec": spec, **arguments})


def make_planner(config, root, make_job=job_of, events=None):
    listen = (lambda event: None) if events is None else events.append
    total = STEPS_PER_EPOCH * EPOCHS
    return Planner(config, RunPaths(Path(root)), STEPS_PER_EPOCH, total, make_job, listen)


def run_sweep(config, root, make_job=job_of, events=None):
    planner = make_planner(config, root, make_job, events)
    InProcessHost().run_trials(planner, Resources(), concurrency=1)
    return planner


def refuse_above(limit):
    def make_job(spec):
        if spec.overrides["optimizer.weight_decay"] > limit:
            raise ConfigError(f"optimizer.weight_decay: at most {limit}")
        return job_of(spec)

    return make_job


class _Killer(Planner):
    """Dies without a word at its n-th report: before the study knows of it, or after."""

    reports, before = 0, True

    def report(self, id, report):
        type(self).reports -= 1
        if self.before and self.reports == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super().report(id, report)
        if self.reports == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


if __name__ == "__main__":
    root, sampler, scheduler, reports, when = sys.argv[1:]
    Planner, _Killer.reports, _Killer.before = _Killer, int(reports), when == "before"
    run_sweep(make_config(sampler={"type": sampler}, scheduler=json.loads(scheduler)), root)
