"""One run from start to end: which task, engine, loader and hooks together, in which folder."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from orchestrator import auto
from orchestrator.config.base import build
from orchestrator.config.digest import config_digest, digest_difference
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import dump_yaml, load_config
from orchestrator.config.plugins import load_plugins
from orchestrator.config.training import DistillTask
from orchestrator.data.types import Loader
from orchestrator.engine.base import Engine
from orchestrator.errors import OrchError, RunFolderError
from orchestrator.evaluate import evaluate, predict, samples_of
from orchestrator.files import read_json, write_json
from orchestrator.hooks import EarlyStopping, Every, Interrupt, KeepBest, Log
from orchestrator.host import SingleWorker, Worker
from orchestrator.loop import Evaluation, Hook, RunState, Signal, StepInfo, fit
from orchestrator.networks import build_network
from orchestrator.optim.schedules import build_schedule
from orchestrator.run_folder.checkpoint import CheckpointStore
from orchestrator.run_folder.checkpoint_group import save_together
from orchestrator.run_folder.environment import describe_environment, environment_changes
from orchestrator.run_folder.model_file import ModelSpec, save_model
from orchestrator.run_folder.opening import OpenedRun, open_run
from orchestrator.run_folder.paths import RunPaths, resolve_target
from orchestrator.run_folder.predictions import write_predictions
from orchestrator.run_folder.records import drop_after
from orchestrator.run_folder.status import Best
from orchestrator.seeding import INIT, derive
from orchestrator.tasks.base import Task
from orchestrator.tasks.distill import TEACHER
from orchestrator.teacher import (
    LiveTeacher,
    TaughtLoader,
    check_teacher,
    find_teacher,
    stored_answers,
)
from orchestrator.tracking.base import Tracker, artifact_of, build_tracker

HELD_OUT = ("val", "select")


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `best` has step, epoch, value and metrics of the best evaluation."""

    root: Path
    state: Literal["done", "interrupted"]
    why: str
    step: int
    best: Mapping[str, Any] | None


@dataclass
class Parts:
    """What one rank needs to train: built from a file, before any step."""

    config: ExperimentConfig
    worker: Worker
    task: Task
    loader: Loader
    engine: Engine

    def close(self) -> None:
        """Frees memory, devices and background work."""
        self.engine.close()
        self.loader.close()


def run(
    config: ExperimentConfig,
    *,
    worker: Worker,
    root: Path,
    resume: bool = False,
    group: str | None = None,
    job_type: str = "train",
) -> Generator[StepInfo, None, RunResult]:
    """Trains one experiment in its run folder, from the last checkpoint where it resumes.

    Args:
        config: the file; its `auto` values are resolved before the first step.
        worker: this rank.
        root: the run folder, on storage that every rank reaches.
        resume: go on with an unfinished run.
        group: the sweep that the run belongs to.
        job_type: train, trial, student or baseline.

    Yields:
        One `StepInfo` after each optimizer step. Closing the generator saves a checkpoint.

    Raises:
        OrchError: as the exception tree says; the run folder notes why.
    """
    paths = RunPaths(root)
    load_plugins(config.plugins)
    use_threads(config)
    existed = worker.broadcast(paths.status.exists())
    opened, config = _open_existing(paths, config, worker, resume) if existed else (None, config)
    try:
        parts, measured = prepare(config, worker)
        if not existed:
            opened = _open_on_main(paths, parts.config, worker, resume)
        if opened:
            for one in measured:
                opened.events.record("auto", "measured a training step", **vars(one))
            _describe(paths, parts, opened)
        tracker = build_tracker(parts.config, paths, worker, group=group, job_type=job_type)
        return (yield from _train(parts, paths, opened, tracker))
    except OrchError as error:
        if opened:
            opened.status.finish("failed", str(error))
        raise
    except Exception as error:
        if opened:
            opened.status.finish("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if opened:
            opened.close()


def prepare(config: ExperimentConfig, worker: Worker) -> tuple[Parts, list[auto.Measurement]]:
    """Builds task, loader and engine, with every `auto` resolved."""
    task: Task = build("task", config.task)
    loader = build_loader(config, worker)
    measured: list[auto.Measurement] = []
    if auto.is_open(config):
        config, measured = auto.resolve(config, task=task, loader=loader, worker=worker)
    engine = build_engine(config, task=task, loader=loader, worker=worker)
    return Parts(config, worker, task, loader, engine), measured


def build_loader(config: ExperimentConfig, worker: Worker) -> Loader:
    """The loader that a file asks for, a teacher's answers joined where the task needs them."""
    task = config.task
    if not isinstance(task, DistillTask):
        return _loader(config, worker, {})
    folder = Path(task.teacher)
    teacher = find_teacher(resolve_target(folder, folder.parent))
    if task.teacher_sees == "augmented":
        loader = _loader(config, worker, {})
        return TaughtLoader(loader, LiveTeacher(teacher, loader.info, worker))
    loader = _loader(config, worker, {TEACHER: stored_answers(teacher)})
    check_teacher(teacher, loader.info)
    return loader


def _loader(
    config: ExperimentConfig, worker: Worker, extra_targets: Mapping[str, np.ndarray]
) -> Loader:
    micro_batch = config.train.micro_batch
    loader: Loader = build(
        "loader",
        config.data.loader,
        data=config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        micro_batch=None if micro_batch == "auto" else micro_batch,
        worker=worker,
        extra_targets=extra_targets,
    )
    return loader


def build_engine(config: ExperimentConfig, *, task: Task, loader: Loader, worker: Worker) -> Engine:
    """The engine that a file asks for, around a freshly initialised network."""
    torch.manual_seed(derive(config.seed, INIT))
    network = build_network(
        config.model,  # type: ignore[arg-type]
        outputs=task.outputs(loader.info),
        shape=loader.info.shape,
        vocabulary=loader.info.vocabulary,
        per_token=task.per_token,
    )
    engine: Engine = build(
        "engine",
        config.engine,
        model=network,
        optimizer=config.optimizer,
        train=config.train,
        seed=config.seed,
        worker=worker,
    )
    return engine


def use_threads(config: ExperimentConfig) -> None:
    """Gives PyTorch the cores that the file says; results depend on their number."""
    if isinstance(config.scale.cpus, int):
        torch.set_num_threads(config.scale.cpus)


def steps_of(config: ExperimentConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run, at least one."""
    return max(config.train.duration.steps(steps_per_epoch), 1)


# --- opening -------------------------------------------------------------------------------


def _open_existing(
    paths: RunPaths, config: ExperimentConfig, worker: Worker, resume: bool
) -> tuple[OpenedRun | None, ExperimentConfig]:
    """Takes a folder that holds a run already, before anything heavy is built.

    What the run resolved `auto` to is taken over, never measured again.
    """
    if paths.config.exists():
        config = auto.adopt(config, load_config(paths.config))
    return _open_on_main(paths, config, worker, resume), config


def _open_on_main(
    paths: RunPaths, config: ExperimentConfig, worker: Worker, resume: bool
) -> OpenedRun | None:
    """Opens the folder on rank 0; where that is refused, every rank raises the refusal."""
    opened, refusal = None, None
    if worker.is_main:
        try:
            opened = _open(paths, config, resume)
        except RunFolderError as error:
            refusal = error
    refusal = worker.broadcast(refusal)
    if refusal is not None:
        raise refusal
    return opened


def check_folder(config: ExperimentConfig, root: Path, resume: bool) -> None:
    """Refuses, before any worker starts, a folder that this file may not write.

    Raises:
        RunFolderError: as `open_run` does.
    """
    paths = RunPaths(root)
    if not paths.status.exists():
        return
    opened, _ = _open_existing(paths, config, SingleWorker(), resume)
    if opened:
        opened.close()


def _open(paths: RunPaths, config: ExperimentConfig, resume: bool) -> OpenedRun:
    return open_run(
        paths,
        digest=config_digest(config),
        config_yaml=dump_yaml(config),
        resume=resume,
        difference=digest_difference,
    )


def _describe(paths: RunPaths, parts: Parts, opened: OpenedRun) -> None:
    """Writes `env.json`; a resumed run notes what is no longer as it was."""
    info, config = parts.loader.info, parts.config
    seeds = {"seed": config.seed, "split": config.data.split.seed}
    content = describe_environment(seeds, info.digest, info.split_digest)
    content["hardware"]["threads"] = torch.get_num_threads()
    if opened.resumed and paths.env.exists():
        for change in environment_changes(read_json(paths.env), content):
            opened.events.record("environment", f"changed since the run began: {change}")
    write_json(paths.env, content)


# --- training ------------------------------------------------------------------------------


def _train(
    parts: Parts, paths: RunPaths, opened: OpenedRun | None, tracker: Tracker
) -> Generator[StepInfo, None, RunResult]:
    config, worker = parts.config, parts.worker
    store = _store(paths, config, opened)
    interrupt = Interrupt()
    state = _state(parts, opened, store, tracker, interrupt)
    _restore(state, store, paths, opened)
    began, saved = time.perf_counter(), state.step
    try:
        with interrupt.listening():
            for info in fit(state):
                if opened:
                    _note(opened, state, info)
                yield info
    except GeneratorExit:
        # Whoever drives the run has had enough of it: keep what was trained.
        if worker.world_size == 1 and state.step > saved:
            state.save(state)
        if opened:
            opened.status.finish("interrupted", "stopped from outside; --resume goes on")
        tracker.finish("interrupted")
        raise
    except BaseException:
        tracker.finish("failed")
        raise
    if opened:
        opened.status.timing("train", time.perf_counter() - began)
    return _end(parts, paths, opened, tracker, store, state, interrupt)


def _store(
    paths: RunPaths, config: ExperimentConfig, opened: OpenedRun | None
) -> CheckpointStore | None:
    """Rank 0's store of checkpoints; only who holds the run's lease may write."""
    if opened is None:
        return None
    return CheckpointStore(
        paths.checkpoints,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        mode=config.evaluate.mode,
        notice=lambda message: opened.events.record("checkpoint", message),
    )


def _state(
    parts: Parts,
    opened: OpenedRun | None,
    store: CheckpointStore | None,
    tracker: Tracker,
    interrupt: Interrupt,
) -> RunState:
    config, loader, worker = parts.config, parts.loader, parts.worker
    per_epoch = loader.steps_per_epoch
    total = steps_of(config, per_epoch)

    def evaluate_val() -> Evaluation:
        return evaluate(
            parts.engine.evaluate_step,
            parts.task,
            loader,
            "val",
            worker,
            config.evaluate.batch_size,
        )

    def save(state: RunState) -> None:
        if opened:
            opened.lease.check()
        _save(state, store, worker, config.evaluate.monitor)

    return RunState(
        engine=parts.engine,
        task=parts.task,
        loader=loader,
        worker=worker,
        schedule=build_schedule(
            config.schedule,  # type: ignore[arg-type]
            steps_per_epoch=per_epoch,
            total_steps=total,
        ),
        lr=config.optimizer.lr,  # type: ignore[attr-defined]
        total_steps=total,
        evaluate=evaluate_val,
        save=save,
        hooks=_hooks(config, tracker, interrupt, per_epoch, total),
    )


def _hooks(
    config: ExperimentConfig, tracker: Tracker, interrupt: Interrupt, per_epoch: int, total: int
) -> list[Hook]:
    monitor, mode = config.evaluate.monitor, config.evaluate.mode
    hooks: list[Hook] = [
        Log(tracker, config.train.log_every),
        Every(Signal.EVALUATE, config.evaluate.every.steps(per_epoch, total)),
        Every(Signal.CHECKPOINT, config.checkpoint.every.steps(per_epoch, total)),
        KeepBest(monitor, mode, save=config.checkpoint.keep_best > 0),
        interrupt,
    ]
    if config.train.early_stopping:
        hooks.append(EarlyStopping(config.train.early_stopping, monitor, mode))
    return hooks


def _save(state: RunState, store: CheckpointStore | None, worker: Worker, monitor: str) -> None:
    """Writes a checkpoint together with every rank."""
    state.engine.synchronise()
    evaluated = state.evaluated_at == state.step
    save_together(
        store,
        worker,
        state.step,
        state.engine.save,
        meta=state.memory(),
        metric=state.last[monitor] if evaluated else None,
    )


def _restore(
    state: RunState, store: CheckpointStore | None, paths: RunPaths, opened: OpenedRun | None
) -> None:
    """Goes back to the newest valid checkpoint, and drops what was logged after it."""
    latest = state.worker.broadcast(store.latest_intact() if store else None)
    if latest is not None:
        state.engine.load(latest.path)
        state.remember(latest.meta)
    if opened and opened.resumed:
        drop_after(paths.metrics, state.step)
        best = state.best and Best(state.best["step"], state.best["value"], state.best["metrics"])
        opened.status.rewind(state.step, state.epoch, best or None)


def _note(opened: OpenedRun, state: RunState, info: StepInfo) -> None:
    values = dict(info.evaluation.values) if info.evaluation else None
    opened.status.progress(info.step, info.epoch, values)
    if info.evaluation and state.best and state.best["step"] == info.step:
        opened.status.best(info.step, state.best["value"], state.best["metrics"])


# --- the end -------------------------------------------------------------------------------


def _end(
    parts: Parts,
    paths: RunPaths,
    opened: OpenedRun | None,
    tracker: Tracker,
    store: CheckpointStore | None,
    state: RunState,
    interrupt: Interrupt,
) -> RunResult:
    interrupted = interrupt.received is not None
    if not interrupted:
        began = time.perf_counter()
        best = parts.worker.broadcast(store.best_intact() if store else None)
        if best is not None and best.step != state.step:
            parts.engine.load_model_state(best.path)
        export(parts, paths)
        if opened:
            opened.status.timing("export", time.perf_counter() - began)
    why = state.stop_reason or f"all {math.ceil(state.step)} steps trained"
    result = RunResult(
        paths.root, "interrupted" if interrupted else "done", why, state.step, state.best
    )
    if opened:
        opened.status.finish(result.state, why)
    tracker.summary({} if state.best is None else dict(state.best["metrics"]))
    made = artifact_of(paths)
    tracker.finish(result.state, [made] if made and not interrupted else [])
    parts.close()
    return result


def export(parts: Parts, paths: RunPaths) -> None:
    """Writes the model as it is, and its predictions where a sample has one answer."""
    config, loader = parts.config, parts.loader
    for split in () if parts.task.per_token else HELD_OUT:
        if samples_of(loader.info, split):
            predictions = predict(
                parts.engine.evaluate_step,
                parts.task,
                loader,
                split,
                parts.worker,
                config.evaluate.batch_size,
            )
            if predictions is not None:
                write_predictions(paths.predictions(split), predictions)
    weights = parts.engine.model_state()
    if parts.worker.is_main:
        spec = ModelSpec.of(
            config.model.model_dump(mode="json"),
            parts.task.outputs(loader.info),
            loader.info,
            plugins=config.plugins,
            precision=config.train.precision,
            memory_format=config.train.memory_format,
            per_token=parts.task.per_token,
        )
        save_model(paths, weights, spec)
    parts.worker.barrier()
