"""The planner: hands out trials, judges their reports, and remembers both in a durable study.

It lives in the driver and is asked by a `Host`. What it is told is in the study before it answers,
so a driver that is killed at any moment is continued by a new planner on the same folder: trials
that were running are handed out again, finished ones never.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.errors import UserError
from orchestrator.host import TrialJob
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import read_lines
from orchestrator.run_folder.status import Status
from orchestrator.seeding import SEARCH, derive
from orchestrator.sweep.events import (
    SweepEvent,
    TrialFailed,
    TrialFinished,
    TrialPruned,
    TrialReported,
    TrialRetried,
    TrialStarted,
)
from orchestrator.sweep.samplers import build_sampler, grid_size
from orchestrator.sweep.schedulers import Steps, build_scheduler
from orchestrator.sweep.space import build_space
from orchestrator.sweep.study import best_value, better, open_study, sweep_of, trial_id


@dataclass(frozen=True)
class TrialSpec:
    """One trial to run.

    Attributes:
        id: such as ``007``; also the name of its folder.
        overrides: values by dotted key of the file.
        folder: the trial's run folder.
        resume: whether an earlier attempt may have left checkpoints there.
    """

    id: str
    overrides: Mapping[str, Any]
    folder: Path
    resume: bool


@dataclass(frozen=True)
class _Length:
    """How long a trial is; another batch size than the file's makes it another."""

    steps_per_epoch: int
    total_steps: int


@dataclass
class _Live:
    """A trial that was handed out."""

    trial: optuna.Trial
    since: float
    length: _Length
    steps: set[int]
    """Where it has reported; a resumed trial repeats some of its reports."""
    best: float | None
    doomed: str = ""
    """Why it is being stopped as failed."""
    pruned_at: int | None = None
    other: tuple[str, ...] = ()
    """Metrics that came instead of the monitored one."""


class Planner:
    """A `TrialStream` over Optuna's ask and tell.

    Args:
        config: the experiment; its `sweep` section says what is searched.
        paths: the sweep's folder.
        steps_per_epoch, total_steps: of the file, in optimizer steps; a trial with another batch
            size reports its own.
        make_job: turns a specification into what the host runs. When it raises a `UserError`,
            as for a derived file that is not valid, that trial has failed and the next is asked.
        on_event: told of everything that happens, in order.

    Raises:
        ConfigError: if the file has no sweep section, or a grid's values can't be counted.
        RunFolderError: if the folder holds another search, with what differs.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        paths: RunPaths,
        steps_per_epoch: int,
        total_steps: int,
        make_job: Callable[[TrialSpec], TrialJob],
        on_event: Callable[[SweepEvent], None] = lambda event: None,
    ) -> None:
        self._config, self._sweep, self._paths = config, sweep_of(config), paths
        self._make_job, self._emit = make_job, on_event
        self._length = _Length(steps_per_epoch, total_steps)
        self._monitor, self._mode = config.evaluate.monitor, config.evaluate.mode
        self._space = build_space(self._sweep.space)
        steps = Steps(
            steps_per_epoch,
            total_steps,
            config.evaluate.every.interval(steps_per_epoch, total_steps),
        )
        self._study = open_study(config, paths.study)
        self._study.pruner = build_scheduler(self._sweep.scheduler, steps)
        self._study.set_user_attr("steps_per_epoch", steps_per_epoch)
        self._study.set_user_attr("monitor", self._monitor)
        self._study.set_user_attr("mode", self._mode)
        self._live: dict[str, _Live] = {}
        self._again = deque(self._interrupted())

    @property
    def planned(self) -> int:
        """How many trials the sweep has in all: `sweep.trials`, or a smaller grid's size."""
        if self._sweep.sampler.type == "grid":
            return min(self._sweep.trials, grid_size(self._space))
        return self._sweep.trials

    def next(self) -> TrialJob | None:
        """The next trial: first those that were interrupted, then new ones."""
        while True:
            resume = bool(self._again)
            if resume:
                trial = self._again.popleft()
            elif self._count() < self.planned:
                trial = self._ask()
            else:
                return None
            job = self._start(trial, resume)
            if job is not None:
                return job

    def report(self, id: str, report: Mapping[str, Any]) -> bool:
        """Takes an evaluation; True asks for the trial to be stopped.

        Args:
            id: the trial.
            report: ``step`` (int), ``epoch`` (float), ``values`` (numbers by metric name) and
                ``total`` (int: the trial's last step; by default the file's). One without any
                metric of the monitored split is passed over.
        """
        live = self._live[id]
        if live.doomed or live.pruned_at is not None:
            return True
        value = self._monitored(live, report)
        if live.doomed or value is None:
            return bool(live.doomed)
        step, epoch = int(report["step"]), float(report["epoch"])
        self._note_length(live, step, epoch, report.get("total"))
        if better(value, live.best, self._mode):
            live.best = value
        prune = self._judge(live, step, value)
        assert live.best is not None
        self._emit(TrialReported(id, time.time(), step, epoch, value, live.best))
        return prune

    def finished(self, id: str, error: str | None, crashed: bool = False) -> None:
        """Takes the end of a trial; see `TrialStream.finished`."""
        live = self._live.pop(id)
        self._note_time(live)
        if live.doomed:
            self._fail(live.trial, live.doomed)
        elif live.pruned_at is not None:
            self._tell_pruned(live, error)
        elif error is not None and crashed and self._status(id) == "done":
            # Its worker died of what comes after the training, such as an upload.
            self._replay(live, judge=False)
            self._complete(live)
        elif (
            error is not None and crashed and self._failures(live.trial) < self._sweep.max_failures
        ):
            self._retry(live.trial, error, self._failures(live.trial) + 1)
        elif error is not None:
            self._fail(live.trial, error)
        elif self._status(id) == "interrupted":
            # Its worker was asked to leave, as when a machine is taken back.
            self._retry(live.trial, "interrupted", self._failures(live.trial))
        else:
            self._complete(live)

    # --- handing out -----------------------------------------------------------------------

    def _ask(self) -> optuna.Trial:
        self._seed(self._count())
        return self._study.ask()

    def _seed(self, number: int) -> None:
        seed = derive(self._config.seed, SEARCH, number)
        self._study.sampler = build_sampler(self._sweep.sampler, self._space, seed)

    def _start(self, trial: optuna.Trial, resume: bool) -> TrialJob | None:
        name = trial_id(trial.number)
        # A trial that was interrupted while it drew its parameters draws the rest now.
        overrides = {key: one.suggest(trial, key) for key, one in self._space.items()}
        trial.set_user_attr("overrides", overrides)
        folder = self._paths.trial(name).root
        trial.set_user_attr("folder", str(folder.relative_to(self._paths.root)))
        try:
            job = self._make_job(TrialSpec(name, overrides, folder, resume))
        except UserError as error:
            self._emit(TrialStarted(name, time.time(), overrides, resume))
            self._fail(trial, str(error))
            return None
        self._live[name] = self._alive(trial)
        self._emit(TrialStarted(name, time.time(), overrides, resume))
        return job

    def _alive(self, trial: optuna.Trial) -> _Live:
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        return _Live(
            trial,
            time.time(),
            _length_of(frozen.user_attrs, self._length),
            set(frozen.intermediate_values),
            best_value(frozen, self._mode),
            pruned_at=frozen.user_attrs.get("pruned_at"),
        )

    # --- judging ---------------------------------------------------------------------------

    def _note_length(self, live: _Live, step: int, epoch: float, total: int | None) -> None:
        """Keeps how long a trial is, for the leaderboard and for who goes on with the sweep."""
        length = _Length(
            round(step / epoch) if epoch else live.length.steps_per_epoch,
            live.length.total_steps if total is None else int(total),
        )
        if length != live.length:
            live.length = length
            for name, value in asdict(length).items():
                live.trial.set_user_attr(name, value)

    def _monitored(self, live: _Live, report: Mapping[str, Any]) -> float | None:
        values = report["values"]
        value = values.get(self._monitor)
        if value is None:
            split = self._monitor.split("/")[0]
            live.other = tuple(sorted(values))
            if any(name.startswith(f"{split}/") for name in values):
                live.doomed = self._unmonitored(live)
        elif not math.isfinite(value):
            live.doomed = f"{self._monitor} became {value} at step {report['step']}"
        return None if value is None else float(value)

    def _unmonitored(self, live: _Live) -> str:
        came = f"reported {', '.join(live.other)}" if live.other else "reported nothing"
        return f"evaluate.monitor is {self._monitor}, but the trial {came}"

    def _judge(self, live: _Live, step: int, value: float, judge: bool = True) -> bool:
        if step in live.steps:
            return False
        live.steps.add(step)
        live.trial.report(value, step)
        # Stopping at the last step would save nothing and lose a finished trial.
        if not judge or step >= live.length.total_steps or not live.trial.should_prune():
            return False
        live.trial.set_user_attr("pruned_at", step)
        live.pruned_at = step
        return True

    # --- ending ----------------------------------------------------------------------------

    def _complete(self, live: _Live) -> None:
        if live.best is None:
            self._fail(live.trial, self._unmonitored(live))
            return
        self._study.tell(live.trial, live.best)
        self._emit(TrialFinished(trial_id(live.trial.number), time.time(), live.best))

    def _tell_pruned(self, live: _Live, error: str | None) -> None:
        if error is not None:
            live.trial.set_user_attr("why", f"while it was stopped: {error}")
        self._study.tell(live.trial, state=TrialState.PRUNED)
        step = live.pruned_at or 0
        self._emit(TrialPruned(trial_id(live.trial.number), time.time(), step, live.best))

    def _fail(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self._study.tell(trial, state=TrialState.FAIL)
        self._emit(TrialFailed(trial_id(trial.number), time.time(), why))

    def _retry(self, trial: optuna.Trial, why: str, failures: int) -> None:
        trial.set_user_attr("failures", failures)
        self._again.append(trial)
        self._emit(TrialRetried(trial_id(trial.number), time.time(), why, failures))

    def _failures(self, trial: optuna.Trial) -> int:
        return int(trial.user_attrs.get("failures", 0))

    def _note_time(self, live: _Live) -> None:
        before = float(live.trial.user_attrs.get("seconds", 0.0))
        live.trial.set_user_attr("seconds", before + time.time() - live.since)

    # --- going on --------------------------------------------------------------------------

    def _interrupted(self) -> Iterator[optuna.Trial]:
        """Trials that no one has told the end of; those that did end are told it now."""
        for frozen in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._seed(frozen.number)
            trial = optuna.Trial(self._study, frozen._trial_id)
            live = self._alive(trial)
            state = self._status(trial_id(frozen.number))
            self._replay(live, judge=state != "done")
            if live.pruned_at is not None:
                self._tell_pruned(live, None)
            elif state == "done":
                self._complete(live)
            else:
                yield trial

    def _replay(self, live: _Live, judge: bool) -> None:
        """Takes over evaluations that the trial wrote down but the planner was not told of."""
        split, _, name = self._monitor.partition("/")
        for line in read_lines(self._paths.trial(trial_id(live.trial.number)).metrics):
            value = line["values"].get(name) if line["split"] == split else None
            if value is None or live.pruned_at is not None:
                continue
            step = int(line["step"])
            self._note_length(live, step, float(line["epoch"]), None)
            if better(value, live.best, self._mode):
                live.best = value
            self._judge(live, step, float(value), judge)

    def _status(self, id: str) -> str | None:
        status = Status.read(self._paths.trial(id).status)
        return status.state if status else None

    def _count(self) -> int:
        return len(self._study.get_trials(deepcopy=False))


def _length_of(attributes: Mapping[str, Any], default: _Length) -> _Length:
    """What a trial's attributes say of its length; those of a trial like the file say nothing."""
    known = {name: attributes.get(name, value) for name, value in asdict(default).items()}
    return _Length(**known)
