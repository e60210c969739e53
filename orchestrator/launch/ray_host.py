"""The host on a Ray cluster: stages in warm workers, groups by Ray Train, trials by Ray Tune."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from orchestrator.errors import OrchError, TrialError
from orchestrator.host import Resources, TrialStream, arguments_after
from orchestrator.launch.cluster import Session, check_resources, start_or_attach
from orchestrator.launch.ray_train import run_group
from orchestrator.launch.remote import (
    Failure,
    Interruptible,
    Lost,
    Packed,
    WorkerLostError,
    WorkFailedError,
    ask_to_end,
    bundle,
    died,
    exhaust,
    forget,
    free_memory,
    save_trace,
    single_worker,
)

CLOSE_SECONDS = 30.0
"""How long interrupted stages may take to write a checkpoint before their workers are killed."""


class RayHost:
    """Runs stages and trials on a Ray cluster.

    Args:
        session: what `start_or_attach` gave; by default a new cluster on this machine. `close`
            closes it too.
        traces: where tracebacks of failed work are kept; by default a temporary folder.
        retries: how often a stage is started again after its worker died.
        retry_arguments: what such a start changes in the arguments, such as ``{"resume": True}``.
    """

    def __init__(
        self,
        session: Session | None = None,
        *,
        traces: Path | None = None,
        retries: int = 1,
        retry_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._session = session or start_or_attach()
        self._traces = traces or Path(tempfile.gettempdir()) / f"orch-traces-{uuid.uuid4().hex[:8]}"
        self._retries, self._retry_arguments = retries, dict(retry_arguments or {})
        self._pool = _Pool()
        self._executors: dict[Resources, ThreadPoolExecutor] = {}
        self._open: set[_Stage] = set()

    def capacity(self, resources: Resources) -> int:
        """How many such stages fit at once.

        Raises:
            ResourceError: if not even one ever fits.
        """
        return check_resources(resources)

    def submit(
        self, call: Callable[..., Any], arguments: Mapping[str, Any], resources: Resources
    ) -> _Stage:
        """Starts ``call(worker=…, **arguments)`` on every worker; the result is rank 0's.

        A generator is run to its end; its result is what it returned.

        Raises:
            ResourceError: if the cluster can never run it.
        """
        stage = _Stage(self, call, arguments, resources)
        if resources not in self._executors:
            room = check_resources(resources)
            self._executors[resources] = ThreadPoolExecutor(room, f"orch-{len(self._executors)}")
        self._open.add(stage)
        stage.start(self._executors[resources])
        return stage

    def run_trials(self, trials: TrialStream, resources: Resources, concurrency: int) -> None:
        """Runs trials until the stream has no more; see `ray_tune.run_trials`."""
        from orchestrator.launch.ray_tune import run_trials

        concurrency = min(concurrency, check_resources(resources))
        self._pool.drop_idle()
        run_trials(trials, resources, concurrency, self._traces)

    def close(self) -> None:
        """Ends what still runs (in order, if it does so in time) and the session.

        A cluster that was there before stays up. May be called twice.
        """
        for stage in list(self._open):
            stage.cancel()
        for stage in list(self._open):
            stage.wait(CLOSE_SECONDS)
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        self._executors.clear()
        self._pool.close()
        self._session.close()


class _Stage:
    """Work that was submitted. A thread of the driver waits for it and starts it again."""

    def __init__(
        self,
        host: RayHost,
        call: Callable[..., Any],
        arguments: Mapping[str, Any],
        resources: Resources,
    ) -> None:
        self._host, self._call, self._arguments = host, call, dict(arguments)
        self._resources = resources
        self._token = uuid.uuid4().hex
        self._cancelled = False
        self._future: Future[Any]

    def start(self, executor: ThreadPoolExecutor) -> None:
        """Queues the work."""
        self._future = executor.submit(self._run)
        self._future.add_done_callback(lambda _: self._host._open.discard(self))

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._future.done()

    def result(self) -> Any:
        """Waits, then returns what the work returned or raises what it raised.

        Raises:
            TrialError: for an exception that is not orch's own, or for workers that died too
                often.
        """
        try:
            return self._future.result()
        except CancelledError:
            raise TrialError("cancelled before it started") from None

    def cancel(self) -> None:
        """Asks the work to end: what is queued never starts, what runs is interrupted."""
        self._cancelled = True
        if not self._future.cancel() and not self._future.done():
            ask_to_end(self._token)

    def wait(self, seconds: float) -> None:
        """Waits for the end, whatever it is."""
        with suppress(Exception, CancelledError):
            self._future.exception(timeout=seconds)

    def _run(self) -> Any:
        arguments, lost = self._arguments, ""
        try:
            for _ in range(self._host._retries + 1):
                outcome = self._mended(arguments)
                if not isinstance(outcome, Lost):
                    return outcome
                lost = outcome.text
                if self._cancelled:
                    break
                arguments = {**self._arguments, **self._host._retry_arguments}
        finally:
            with suppress(Exception):
                forget(self._token)
        raise TrialError("cancelled" if self._cancelled else lost)

    def _mended(self, arguments: Mapping[str, Any]) -> Any:
        """One start, and a group's next ones, if it fails of what `restarted_by` mends."""
        while True:
            try:
                return self._once(Packed.of(self._call, arguments))
            except OrchError as error:
                if self._resources.workers == 1 or self._cancelled:
                    raise
                arguments = arguments_after(self._call, error, arguments)

    def _once(self, packed: Packed) -> Any:
        """One start: what the work returned, or how its worker died."""
        pool = self._host._pool
        actor = pool.take(self._resources)
        outcome: Any = Lost("")
        try:
            outcome = ray.get(actor.run.remote(packed, self._resources, self._token))
        except RayActorError as error:
            outcome = Lost(died(error))
        except RayTaskError as error:
            # The worker catches what the work raises: this is a result that can't be pickled.
            outcome = Failure.of(error)
        finally:
            if isinstance(outcome, Failure | Lost):
                pool.discard(self._resources, actor)
            else:
                pool.give(self._resources, actor)
        if isinstance(outcome, Failure):
            raise outcome.exception("", save_trace(self._host._traces, "stage", outcome.trace))
        return outcome


class _StageWorker:
    """A process that runs one stage after another. Of a group, it is the one that starts it."""

    def __init__(self) -> None:
        self._interruptible = Interruptible()

    def run(self, packed: Packed, resources: Resources, token: str) -> Any:
        """What the call returned, a `Failure`, or `Lost` if a group's worker died."""
        try:
            with self._interruptible(token):
                if resources.workers > 1:
                    return run_group(packed, resources)
                return exhaust(packed.start(single_worker(resources.cpus)))
        except WorkFailedError as error:
            return error.failure
        except WorkerLostError as error:
            return Lost(str(error))
        except BaseException as error:
            return Failure.of(error)
        finally:
            free_memory()


class _Pool:
    """Warm workers by the resources that they hold.

    An idle worker holds its resources, so it is kept only while nothing of another shape runs or
    waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Resources, list[ActorHandle]] = {}
        self._busy: set[ActorHandle] = set()
        self._wanted: Counter[Resources] = Counter()

    def take(self, resources: Resources) -> ActorHandle:
        """An idle worker, or a new one (Ray starts it when there is room)."""
        with self._lock:
            self._wanted[resources] += 1
            self._drop(lambda shape: shape != resources)
            idle = self._idle.get(resources)
            actor = idle.pop() if idle else _start_worker(resources)
            self._busy.add(actor)
            return actor

    def give(self, resources: Resources, actor: ActorHandle) -> None:
        """Takes a worker back."""
        with self._lock:
            self._busy.discard(actor)
            self._idle.setdefault(resources, []).append(actor)
            self._ended(resources)

    def discard(self, resources: Resources, actor: ActorHandle) -> None:
        """Kills a worker whose state can't be trusted."""
        with self._lock:
            self._busy.discard(actor)
            self._ended(resources)
        _kill(actor)

    def drop_idle(self) -> None:
        """Frees what idle workers hold."""
        with self._lock:
            self._drop(lambda shape: True)

    def close(self) -> None:
        """Kills every worker."""
        with self._lock:
            self._drop(lambda shape: True)
            for actor in self._busy:
                _kill(actor)
            self._busy.clear()

    def _ended(self, resources: Resources) -> None:
        self._wanted[resources] -= 1
        wanted = {shape for shape, count in self._wanted.items() if count > 0}
        self._drop(lambda shape: bool(wanted - {shape}))

    def _drop(self, which: Callable[[Resources], bool]) -> None:
        for shape in [shape for shape in self._idle if which(shape)]:
            for actor in self._idle.pop(shape):
                _kill(actor)


def _start_worker(resources: Resources) -> ActorHandle:
    # The process that starts a group only waits; the group's workers hold the resources.
    holds = bundle(resources) if resources.workers == 1 else {}
    return (
        ray.remote(_StageWorker)
        .options(num_cpus=holds.get("CPU", 0), num_gpus=holds.get("GPU", 0), max_restarts=0)
        .remote()
    )


def _kill(actor: ActorHandle) -> None:
    # After Ray was shut down there is nothing left to kill.
    with suppress(Exception):
        ray.kill(actor)
