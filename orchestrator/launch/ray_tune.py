"""Trials through Ray Tune, in warm workers.

Ray Tune starts, places and watches the workers; which trial comes next and which one is stopped is
the `TrialStream`'s business. One trainable serves every trial: its process stays between trials
(a fresh one costs seconds for imports alone), and is replaced after any exception. Nothing of
Tune's own book-keeping is written but a scratch folder, which is removed.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import ray.cloudpickle
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from orchestrator.host import Resources, TrialJob, TrialStream
from orchestrator.launch.ray_trial import Report, trainable
from orchestrator.launch.remote import (
    Failure,
    Packed,
    WorkerLostError,
    WorkFailedError,
    ask_to_end,
    died,
    forget,
    save_trace,
)

GRACE_SECONDS = 30.0
"""How long interrupted trials may take to write a checkpoint before their workers are killed."""

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output is the one that verbose=0 silences
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials end in order
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_THRESHOLD_S": "1000000000",
}


def run_trials(trials: TrialStream, resources: Resources, concurrency: int, traces: Path) -> None:
    """Runs trials until the stream has no more.

    Args:
        trials: hands trials out and judges their reports, here in the driver.
        resources: of one trial. With more than one worker, a trial is a `TorchTrainer` of its own.
        concurrency: trials at once, at most.
        traces: where tracebacks of failed trials are kept.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the running trials have ended in order (or a second
            Ctrl-C). They are not told to the stream as finished.
    """
    token = uuid.uuid4().hex
    bridge = _Bridge(trials, concurrency, traces)
    scratch = Path(tempfile.mkdtemp(prefix="orch-tune-"))
    try:
        with _environment(_settings(concurrency)), _interrupts(bridge, token):
            _run(bridge, resources, scratch, token)
    except Exception as error:
        # What the stream raised comes back wrapped in Tune's text.
        raise (bridge.error or error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        forget(token)
    if bridge.interrupted is not None:
        raise KeyboardInterrupt


def _run(bridge: _Bridge, resources: Resources, scratch: Path, token: str) -> None:
    # Of trials that failed the stream is told, and tells the user.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tune.run(
        trainable(resources, token),
        name="trials",
        num_samples=-1,
        search_alg=_Suggest(bridge),
        scheduler=_Judge(bridge),
        stop=_Deadline(bridge),
        reuse_actors=True,
        storage_path=str(scratch),
        verbose=0,
        raise_on_failed_trial=False,
        trial_name_creator=lambda trial: trial.trial_id,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


class _Bridge:
    """Between Tune's three interfaces and the stream; knows which trials run."""

    def __init__(self, trials: TrialStream, concurrency: int, traces: Path) -> None:
        self.interrupted: float | None = None
        self.error: Exception | None = None
        self._trials, self._concurrency, self._traces = trials, concurrency, traces
        self._live: dict[str, TrialJob] = {}
        self._errors: dict[str, tuple[str, bool]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its stopper for a resume of its own, which is never used: the stream, with
        # its open study, stays here.
        return {}

    def suggest(self, key: str) -> dict[str, Any] | str | None:
        """A trial for Tune's id `key`; None when none starts now."""
        if self.interrupted is not None:
            return _finished() if not self._live else None
        if len(self._live) >= self._concurrency:
            return None
        with self._keep_error():
            job = self._trials.next()
        if job is None:
            return None if self._live else _finished()
        self._live[key] = job
        return {"packed": Packed.of(job.call, job.arguments)}

    def report(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether the stream wants the trial to stop."""
        with self._keep_error():
            return self._trials.report(self._live[key].id, values)

    def failed(self, key: str, error: BaseException | None) -> None:
        """Keeps what went wrong until Tune says that the trial is over."""
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, WorkerLostError):
            self._errors[key] = str(cause), True
        elif cause is None:
            self._errors[key] = died(error) if error else "the worker could not start", True
        else:
            failure = cause.failure if isinstance(cause, WorkFailedError) else Failure.of(cause)
            path = save_trace(self._traces, self._live[key].id, failure.trace)
            self._errors[key] = f"{failure.text} (traceback in {path})", False

    def over(self, key: str) -> None:
        """Tells the stream, except of trials that were interrupted: they have not finished."""
        job = self._live.pop(key)
        error, crashed = self._errors.pop(key, (None, False))
        if self.interrupted is None:
            with self._keep_error():
                self._trials.finished(job.id, error, crashed=crashed)

    @contextmanager
    def _keep_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise


def _finished() -> str:
    finished: str = Searcher.FINISHED
    return finished


class _Suggest(Searcher):  # type: ignore[misc]
    """Asks the stream as late as possible, when a slot is free."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        return self._bridge.suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._bridge.over(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study and the run folders are what a sweep is resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""


class _Judge(FIFOScheduler):  # type: ignore[misc]
    """Passes reports to the stream, and gives a free worker to a trial that has none coming.

    Tune's own choice is the trial that waits longest. While that one's worker still imports, each
    freed worker is taken for it and the new one thrown away: short trials never got a second slot.
    """

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._placed: set[str] = set()

    def choose_trial_to_run(self, controller: Any) -> Any:
        for trial in controller.get_live_trials():
            if trial.status == trial.PENDING and trial.trial_id not in self._placed:
                self._placed.add(trial.trial_id)
                return trial
        return None

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report: Report = result["report"]
        if self._bridge.report(trial.trial_id, report.values):
            # Tune's STOP would call the trial over while its generator is still open. This call
            # is ahead of the next step, which then says that the trial is done.
            trial.temporary_state.ray_actor.close_trial.remote()
        go_on: str = TrialScheduler.CONTINUE
        return go_on

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        path = trial.pickled_error_file
        error = ray.cloudpickle.loads(Path(path).read_bytes()) if path else None
        self._bridge.failed(trial.trial_id, error)


class _Deadline(Stopper):  # type: ignore[misc]
    """Ends Tune's run when interrupted trials take too long."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        since = self._bridge.interrupted
        return since is not None and time.monotonic() - since > GRACE_SECONDS


def _settings(concurrency: int) -> dict[str, str]:
    # With fewer, workers would start one after another, each after seconds of imports.
    return SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(concurrency)}


# --- surroundings ---------------------------------------------------------------------------


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that Tune reads when it starts, and puts back what was there."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _interrupts(bridge: _Bridge, token: str) -> AbstractContextManager[None]:
    """Turns the first Ctrl-C into an orderly end; the second acts as it did before."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return _on_sigint(lambda: _end(bridge, token))


def _end(bridge: _Bridge, token: str) -> None:
    bridge.interrupted = time.monotonic()
    ask_to_end(token)


@contextmanager
def _on_sigint(act: Callable[[], None]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)

    def receive(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        act()

    signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
