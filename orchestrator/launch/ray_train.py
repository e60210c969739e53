"""Groups of workers through Ray Train: one call on every rank of a process group."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError

from orchestrator.host import GroupWorker, Resources
from orchestrator.launch.remote import (
    Failure,
    Packed,
    WorkerLostError,
    WorkFailedError,
    bundle,
    died,
    exhaust,
)

SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a lost node is noticed and retried anyway
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a group ends this much sooner than with 2 s
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",  # of a node that the autoscaler has to start
}
"""Read by Ray Train when a group starts; set in the process that starts it."""


def run_group(packed: Packed, resources: Resources, relay: ActorHandle | None = None) -> Any:
    """Makes one call on every rank of a process group and gives rank 0's result.

    A generator is run to its end; its result is what it returned.

    Args:
        packed: the call, made with a `GroupWorker`.
        resources: of the group; its workers need not be on one node.
        relay: a `Relay` that gets the reports which the generator yields.

    Raises:
        WorkFailedError: if a rank raised.
        WorkerLostError: if a worker died.
    """
    os.environ.update(SETTINGS)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    scratch = Path(tempfile.mkdtemp(prefix="orch-train-"))
    trainer = _lean(TorchTrainer)(
        _rank,
        train_loop_config={"packed": packed, "cpus": resources.cpus, "relay": relay},
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=bundle(resources),
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise _why(error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_HELPERS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


def _lean(trainer: Any) -> Any:
    """The trainer without two of its helper processes, which take seconds to start.

    One serves shards of data sets, of which there are none; the other frees a dead controller's
    cores, which Ray does itself when the process that owns them ends, and waits for ever on a
    cluster without a dashboard.
    """

    class LeanTrainer(trainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()
            return [callback for callback in found if type(callback).__name__ not in _HELPERS]

    return LeanTrainer


def _rank(config: dict[str, Any]) -> Any:
    """What every rank does. Runs in a thread of Ray Train's worker process."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(config["cpus"])
    worker = GroupWorker(ray.train.torch.get_device())
    try:
        value = config["packed"].start(worker)
        value = exhaust(value) if config["relay"] is None else _send(value, worker, config["relay"])
    except BaseException as error:
        failure = Failure.of(error)
        text = f"rank {worker.rank}: {failure.text}"
        raise WorkFailedError(Failure(text, failure.trace, failure.error)) from None
    return value if worker.is_main else None


def _why(error: Exception) -> Exception:
    """Sorts a failed group: its own exception, or the death of a worker.

    When a worker dies, the others' collectives fail too; the death is then the cause.
    """
    failures = getattr(error, "worker_failures", {})
    own = {rank: found for rank, found in failures.items() if isinstance(found, WorkFailedError)}
    for rank, found in sorted(failures.items()):
        if rank not in own:
            return WorkerLostError(f"the worker of rank {rank} died: {died(found)}")
    raised = [found for _, found in sorted(own.items()) if not _lost_peer(found.failure)]
    if raised:
        return raised[0]
    if own:
        return WorkerLostError(f"a worker died: {next(iter(own.values())).failure.text}")
    return WorkerLostError(f"Ray Train could not run the group: {died(error)}")


def _lost_peer(failure: Failure) -> bool:
    """Whether a rank only noticed that another one is gone."""
    marks = (
        "Connection closed by peer",
        "Connection reset by peer",
        "DistNetworkError",
        "ncclRemote",
    )
    return any(mark in failure.trace for mark in marks)


# --- reports of a group's trial ------------------------------------------------------------------


class Relay:
    """Carries reports from rank 0 to the trial's worker, and the answers back.

    An asynchronous actor: `report` waits for its answer, so rank 0 stands where a local generator
    would stand between two `next`.
    """

    def __init__(self) -> None:
        import asyncio

        self._reports: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[bool] = asyncio.Queue()

    async def report(self, values: Mapping[str, Any]) -> bool:
        """Gives a report; True asks the trial to stop."""
        await self._reports.put(("report", values))
        return await self._answers.get()

    async def end(self, failure: Failure | str | None) -> None:
        """Says that the group is over: why it failed, how a worker died, or None."""
        await self._reports.put(("end", failure))

    async def take(self) -> tuple[str, Any]:
        """The next report, or the end."""
        return await self._reports.get()

    async def answer(self, stop: bool) -> None:
        """Answers the report that was taken last."""
        await self._answers.put(stop)


def _send(reports: Generator[Mapping[str, Any], None, Any], worker: GroupWorker, relay: Any) -> Any:
    """Sends rank 0's reports; every rank yields at the same points, and stops at the same one."""
    while True:
        try:
            values = next(reports)
        except StopIteration as end:
            return end.value
        stop = ray.get(relay.report.remote(dict(values))) if worker.is_main else False
        if worker.broadcast(stop):
            reports.close()
            return None


def group_reports(packed: Packed, resources: Resources) -> Generator[Mapping[str, Any], None, None]:
    """The reports of a trial that a whole group computes. Closing it closes every rank's generator.

    A group that fails of what `restarted_by` mends, such as memory that ran out in its first steps,
    is started once more.

    Raises:
        WorkFailedError, OrchError: if a rank raised.
        WorkerLostError: if a worker died.
    """
    while True:
        try:
            yield from _one_group(packed, resources)
        except WorkFailedError as error:
            packed = packed.after(error)
        else:
            return


def _one_group(packed: Packed, resources: Resources) -> Generator[Mapping[str, Any], None, None]:
    relay = ray.remote(num_cpus=0)(Relay).remote()

    def run() -> None:
        outcome: Failure | str | None = None
        try:
            run_group(packed, resources, relay)
        except WorkFailedError as error:
            outcome = error.failure
        except BaseException as error:
            outcome = str(error)
        with suppress(RayError):
            ray.get(relay.end.remote(outcome))

    thread = threading.Thread(target=run, name="orch-group", daemon=True)
    thread.start()
    try:
        yield from _received(relay)
        thread.join()
    finally:
        ray.kill(relay)


def _received(relay: Any) -> Generator[Mapping[str, Any], None, None]:
    while True:
        kind, value = ray.get(relay.take.remote())
        if kind == "end":
            _raise(value)
            return
        try:
            yield value
        except GeneratorExit:
            ray.get(relay.answer.remote(True))
            while ray.get(relay.take.remote())[0] != "end":
                pass
            raise
        ray.get(relay.answer.remote(False))


def _raise(outcome: Failure | str | None) -> None:
    if isinstance(outcome, Failure):
        raise WorkFailedError(outcome)
    if outcome is not None:
        raise WorkerLostError(outcome)
