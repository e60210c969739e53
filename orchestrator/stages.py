"""What a host runs on its workers: a trial, a training to the end, an export, a preparation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator import auto
from orchestrator.config.base import build
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import load_config
from orchestrator.config.plugins import load_plugins
from orchestrator.data.types import Loader
from orchestrator.engine.pipeline_cut import check_pipeline
from orchestrator.errors import CheckpointError, OrchError, OutOfMemoryError
from orchestrator.evaluate import check_monitor
from orchestrator.finish import RunResult, export
from orchestrator.host import SingleWorker, Worker, restarted_by
from orchestrator.imported import check_outputs
from orchestrator.networks import build_network, describe_weights, freeze, freeze_until
from orchestrator.optim.groups import parameter_groups
from orchestrator.parts import build_loader, prepare, steps_of, use_threads
from orchestrator.plan import engine as auto_engine
from orchestrator.recipe import begin_again, run
from orchestrator.run_folder.checkpoint import Checkpoints
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.status import Status
from orchestrator.smallest_batch import check_smallest_batch
from orchestrator.tasks.base import Task


def smaller_micro_batches(error: OrchError, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a group whose first steps ran out of memory, to start it with once more.

    Raises:
        OrchError: for any other error, and where smaller micro-batches would not help.
    """
    if not isinstance(error, OutOfMemoryError):
        raise error
    config = begin_again(arguments["config"], arguments["root"], error)
    return {**arguments, "config": config}


@restarted_by(smaller_micro_batches)
def trial(
    *, worker: Worker, config: ExperimentConfig, root: Path, resume: bool, group: str
) -> Iterator[Mapping[str, Any]]:
    """Trains one trial of a sweep; yields a report after each evaluation."""
    resume = resume or RunPaths(root).status.exists()
    steps = run(config, worker=worker, root=root, resume=resume, group=group, job_type="trial")
    with contextlib.closing(steps):
        for info in steps:
            if info.evaluation is not None:
                yield {
                    "step": info.step,
                    "total": info.total,
                    "epoch": info.epoch,
                    "values": dict(info.evaluation.values),
                }


@restarted_by(smaller_micro_batches)
def train_to_end(
    *,
    worker: Worker,
    config: ExperimentConfig,
    root: Path,
    resume: bool | None = None,
    group: str | None = None,
    job_type: str = "train",
) -> RunResult:
    """Trains one experiment to its end.

    Args:
        resume: None goes on with whatever the folder holds, as after a worker's death.
    """
    if resume is None:
        status = Status.read(RunPaths(root).status)
        resume = status is not None and not status.finished
    steps = run(config, worker=worker, root=root, resume=resume, group=group, job_type=job_type)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: RunResult = end.value
            return result


def export_stopped(*, worker: Worker, root: Path) -> None:
    """Exports the best checkpoint of a run that was stopped early, such as a pruned trial.

    Called by as many workers as trained it: of a pipeline, and of partitioned parameters, each
    holds a part.

    Raises:
        CheckpointError: if the run was stopped before its first evaluation.
    """
    paths = RunPaths(root)
    config = load_config(paths.config)
    load_plugins(config.plugins)
    use_threads(config)
    kept = Checkpoints(paths.checkpoints, mode=config.evaluate.mode)
    best = worker.broadcast(kept.best_intact() if worker.is_main else None)
    if best is None:
        raise CheckpointError(f"{root} has no checkpoint that was evaluated; leave it out")
    parts, _ = prepare(config, worker)
    try:
        parts.engine.load_model_state(best.path)
        export(parts, paths)
    finally:
        parts.close()


@dataclass(frozen=True)
class Prepared:
    """What the driver must know before the first trial starts.

    Attributes:
        config: with every `auto` resolved.
        sizes: samples of each split.
        data_digest, split_digest: of the samples, and of which of them went where.
        notes: sentences for people.
    """

    config: ExperimentConfig
    steps_per_epoch: int
    total_steps: int
    sizes: Mapping[str, int]
    data_digest: str
    split_digest: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NetworkSize:
    """How many parameters a network has, and how many of them learn.

    Attributes:
        weights: what its weights file gives it; None where the file names none.
    """

    parameters: int
    trainable: int
    weights: str | None


def describe_network(config: ExperimentConfig, task: Task, loader: Loader) -> NetworkSize:
    """Builds the file's network without memory, on the meta device, to see that it fits the data.

    Raises:
        UserError: for options that are impossible for this input, a pattern of parameters that
            matches nothing, a weights file that does not fit, or a monitored metric that the task
            does not report.
    """
    with torch.device("meta"):
        network = build_network(
            config.model,  # type: ignore[arg-type]
            outputs=task.outputs(loader.info),
            shape=loader.info.shape,
            vocabulary=loader.info.vocabulary,
            per_token=task.per_token,
            load=False,
            recompute=config.train.checkpoint_activations,
        )
    weights = describe_weights(network, config.model)  # type: ignore[arg-type]
    freeze(network, config.model.freeze)  # type: ignore[attr-defined]
    freeze_until(network, [one.parameters for one in config.train.unfreeze], 0)
    parameter_groups(network, config.optimizer)  # type: ignore[arg-type]
    check_pipeline(config.engine, network, task)
    check_monitor(config.evaluate.monitor, task, loader.info)
    check_outputs(config, task, loader.info)
    if not _searches_batches(config):
        check_smallest_batch(config, task, loader.info)
    sizes = [(one.numel(), one.requires_grad) for one in network.parameters()]
    return NetworkSize(
        sum(count for count, _ in sizes),
        sum(count for count, learns in sizes if learns),
        weights,
    )


def _searches_batches(config: ExperimentConfig) -> bool:
    """Whether a sweep chooses what its trials' batches, or networks, are like."""
    searched = config.sweep.space if config.sweep else ()
    return any(key.startswith(("train.", "model", "data.")) for key in searched)


def prepare_sweep(*, worker: Worker, config: ExperimentConfig) -> Prepared:
    """Reads the data into the cache and resolves `auto`, so that no trial has to."""
    load_plugins(config.plugins)
    use_threads(config)
    loader = build_loader(config, SingleWorker(worker.device))
    task: Task = build("task", config.task)
    size = describe_network(config, task, loader)
    notes = list(loader.info.notes)
    if size.weights:
        notes.append(f"model.weights: {size.weights}")
    # What fits depends on the batch: trials and students with other ones choose for themselves.
    if auto_engine.is_open(config) and auto.has_one_batch_size(config):
        config, choice = auto_engine.choose_engine(
            config, task=task, info=loader.info, worker=worker
        )
        notes.append(choice.why)
        loader.close()
        loader = build_loader(config, SingleWorker(worker.device))
    if auto.is_open(config):
        config, measured = auto.resolve(config, task=task, loader=loader, worker=worker)
        train = config.train
        notes.append(f"precision {train.precision}, memory format {train.memory_format}")
        notes += [str(one) for one in measured]
    per_epoch = loader.steps_per_epoch
    info = loader.info
    loader.close()
    return Prepared(
        config,
        per_epoch,
        steps_of(config, per_epoch),
        dict(info.sizes),
        info.digest,
        info.split_digest,
        tuple(notes),
    )
