"""One run from start to end: which task, engine, loader and hooks together, in which folder."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

import torch

from orchestrator import auto, recovery
from orchestrator.allocator import keep_freed_memory
from orchestrator.config.digest import config_digest, digest_difference
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import dump_yaml, load_config
from orchestrator.config.plugins import load_plugins
from orchestrator.config.user_code import named_modules
from orchestrator.errors import OrchError, OutOfMemoryError, RunFolderError
from orchestrator.evaluate import evaluate
from orchestrator.finish import RunResult, finish
from orchestrator.hooks import EarlyStopping, Every, Interrupt, KeepBest, Log
from orchestrator.host import SingleWorker, Worker
from orchestrator.loop import Evaluation, Hook, RunState, Signal, StepInfo, fit
from orchestrator.optim.optimizers import peak_rate
from orchestrator.optim.schedules import build_schedule
from orchestrator.parts import Parts, prepare, steps_of, use_threads
from orchestrator.run_folder.checkpoint import CheckpointStore
from orchestrator.run_folder.checkpoint_group import save_together
from orchestrator.run_folder.code import keep_code
from orchestrator.run_folder.environment import describe_environment
from orchestrator.run_folder.opening import (
    OpenedRun,
    another_configuration,
    note_environment,
    open_run,
    other_data,
)
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import drop_after
from orchestrator.run_folder.status import Best
from orchestrator.tracking.base import Tracker, build_tracker


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
    keep_freed_memory()
    existed = worker.broadcast(paths.status.exists())
    opened, config = _open_existing(paths, config, worker, resume) if existed else (None, config)
    try:
        parts, measured = prepare(config, worker)
        if not existed:
            opened = _open_on_main(paths, parts.config, worker, resume)
        _raise_on_all(_other_data(paths, parts, opened), worker)
        if opened:
            if parts.choice:
                opened.events.record("auto", parts.choice.why, **parts.choice.changes)
            for one in measured:
                opened.events.record("auto", str(one), **vars(one))
            if parts.weights and not existed:
                opened.events.record("weights", parts.weights)
            _describe(parts, opened)
            for name in keep_code(paths, named_modules(parts.config)):
                opened.events.record("environment", f"changed since the run began: {name}")
        while True:
            tracker = build_tracker(parts.config, paths, worker, group=group, job_type=job_type)
            try:
                return (yield from _train(parts, paths, opened, tracker))
            except OutOfMemoryError as error:
                # Other ranks wait for this one in a collective: they all have to be started anew.
                if worker.world_size > 1 or not recovery.may_restart(error, paths):
                    raise
                shortage = error
            config = parts.config
            parts.close()
            del parts, tracker
            recovery.release(shortage)
            assert opened is not None  # of a single worker
            parts, _ = prepare(recovery.begin_again(opened, config, shortage), worker)
    except OrchError as error:
        if opened:
            opened.status.finish("failed", str(error))
        raise
    except Exception as error:
        if opened:
            opened.status.finish("failed", f"{type(error).__name__}: {error}")
        if recovery.is_out_of_memory(error):
            raise recovery.in_building(error) from error
        raise
    finally:
        if opened:
            opened.close()


# --- opening -------------------------------------------------------------------------------


def _open_existing(
    paths: RunPaths, config: ExperimentConfig, worker: Worker, resume: bool
) -> tuple[OpenedRun | None, ExperimentConfig]:
    """Takes a folder that holds a run already, before anything heavy is built.

    What the run resolved `auto` to is taken over, never measured again.
    """
    if paths.config.exists():
        earlier = load_config(paths.config, kept_code=False)
        if resume:
            _check_goal(paths, config, earlier)
        config = recovery.adopt(auto.adopt(config, earlier), earlier, paths)
    return _open_on_main(paths, config, worker, resume), config


def _check_goal(paths: RunPaths, config: ExperimentConfig, earlier: ExperimentConfig) -> None:
    """Refuses to go on with a run whose best evaluation was found by another measure.

    It is not in the digest: what is trained is the same, but not which of it is the best.
    """
    changes = [
        f"evaluate.{key}: {before} -> {now}"
        for key in ("monitor", "mode")
        if (before := getattr(earlier.evaluate, key)) != (now := getattr(config.evaluate, key))
    ]
    if changes:
        raise another_configuration(paths, "run", changes)


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
    _raise_on_all(refusal, worker)
    return opened


def _raise_on_all(refusal: RunFolderError | None, worker: Worker) -> None:
    """Raises rank 0's refusal, if it has one, on every rank, so that none waits for another."""
    refusal = worker.broadcast(refusal)
    if refusal is not None:
        raise refusal


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


def begin_again(config: ExperimentConfig, root: Path, error: OutOfMemoryError) -> ExperimentConfig:
    """Makes a folder whose group ran out of memory ready for smaller micro-batches.

    Returns:
        The file to start the group with.

    Raises:
        OutOfMemoryError: if the run was further than its first steps, or nothing is left to halve.
    """
    paths = RunPaths(root)
    if not recovery.may_restart(error, paths):
        raise error
    opened, config = _open_existing(paths, config, SingleWorker(), resume=True)
    assert opened is not None
    with opened:
        return recovery.begin_again(opened, config, error)


def _open(paths: RunPaths, config: ExperimentConfig, resume: bool) -> OpenedRun:
    return open_run(
        paths,
        digest=config_digest(config),
        config_yaml=dump_yaml(config),
        resume=resume,
        difference=digest_difference,
    )


def _other_data(paths: RunPaths, parts: Parts, opened: OpenedRun | None) -> RunFolderError | None:
    """What to raise where a run was begun with other data."""
    if opened is None or not opened.resumed:
        return None
    info = parts.loader.info
    return other_data(paths, "run", info.digest, info.split_digest)


def _describe(parts: Parts, opened: OpenedRun) -> None:
    info, config = parts.loader.info, parts.config
    seeds = {"seed": config.seed, "split": config.data.split.seed}
    content = describe_environment(seeds, info.digest, info.split_digest)
    content["hardware"]["threads"] = torch.get_num_threads()
    note_environment(opened, content)


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
    except BaseException as error:
        tracker.finish("failed")
        if recovery.is_out_of_memory(error):
            raise recovery.in_training(error, state.step) from error
        raise
    if opened:
        opened.status.timing("train", time.perf_counter() - began)
    return finish(parts, paths, opened, tracker, store, state, interrupt)


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
        with recovery.evaluating(config):
            return evaluate(
                parts.engine.evaluate_step,
                parts.task,
                loader,
                "val",
                parts.reader,
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
        lr=peak_rate(config.optimizer, config.train.batch_size),  # type: ignore[arg-type]
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
        Every(Signal.EVALUATE, config.evaluate.every.interval(per_epoch, total)),
        Every(Signal.CHECKPOINT, config.checkpoint.every.interval(per_epoch, total)),
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
        # Killed while its model was exported, it would train past the stop.
        if any(isinstance(hook, EarlyStopping) and hook.due for hook in state.hooks):
            state.stop_reason = latest.meta.get("stop_reason", "")
    if opened and opened.resumed:
        drop_after(paths.metrics, state.step)
        best = state.best and Best(state.best["step"], state.best["value"], state.best["metrics"])
        opened.status.rewind(state.step, state.epoch, best or None)


def _note(opened: OpenedRun, state: RunState, info: StepInfo) -> None:
    values = dict(info.evaluation.values) if info.evaluation else None
    opened.status.progress(info.step, info.epoch, values)
    if info.evaluation and state.best and state.best["step"] == info.step:
        opened.status.best(info.step, state.best["value"], state.best["metrics"])
