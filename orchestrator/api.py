"""What a program may call: the command line uses nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from orchestrator import distill as distillation
from orchestrator import pipeline
from orchestrator.auto import MEMORY_FORMAT, MICRO_BATCH, PRECISION, known, micro_batch
from orchestrator.config.base import build
from orchestrator.config.engines import copies
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive, load_config
from orchestrator.config.pipeline import DistillConfig, EnsembleConfig
from orchestrator.config.plugins import load_plugins
from orchestrator.config.user_code import named_modules
from orchestrator.data.types import DataInfo
from orchestrator.ensemble.build import build_ensemble
from orchestrator.errors import ConfigError, RunFolderError, UserError
from orchestrator.finish import RunResult
from orchestrator.host import Pending, SingleWorker
from orchestrator.local_host import InProcessHost
from orchestrator.loop import StepInfo
from orchestrator.parts import build_loader, steps_of, use_threads
from orchestrator.pipeline import Listener
from orchestrator.placement import place, resources_of
from orchestrator.plan.memory_plan import MemoryPlanner
from orchestrator.plan.report import MemoryReport, report
from orchestrator.plan.shortages import shortages
from orchestrator.predict import measure_run, predict_run
from orchestrator.recipe import check_folder, run
from orchestrator.run_folder.ensemble_file import EnsembleFile, read_ensemble
from orchestrator.run_folder.model_file import ModelSpec, read_spec
from orchestrator.run_folder.model_file import load_model as load_model_file
from orchestrator.run_folder.opening import place_run
from orchestrator.run_folder.paths import RunPaths, resolve_target
from orchestrator.run_folder.status import Status
from orchestrator.serve.targets import find_one
from orchestrator.stages import describe_network, train_to_end
from orchestrator.table import Line, Table, ensemble_line, run_line
from orchestrator.tasks.base import Task
from orchestrator.teacher import find_teacher

if TYPE_CHECKING:
    from orchestrator.launch.examination import Examination
    from orchestrator.launch.ray_host import RayHost

__all__ = [
    "distill",
    "doctor",
    "ensemble",
    "evaluate",
    "load_config",
    "load_model",
    "measure",
    "plan",
    "sweep",
    "train",
]

RUNS = Path("runs")
FOLLOW_S = 0.5
"""Seconds between two looks at a run in other processes."""


def train(
    config: ExperimentConfig,
    *,
    runs_dir: Path = RUNS,
    address: str | None = None,
    resume: bool = False,
    config_path: Path | None = None,
    on_step: Callable[[StepInfo], None] = lambda info: None,
    on_status: Callable[[Status], None] = lambda status: None,
) -> RunResult:
    """Trains one model: in this process, or with several workers or an address on Ray.

    Args:
        config: the experiment.
        runs_dir: where the run's folder is made.
        address: a Ray cluster, as `--address` takes it.
        resume: go on with an unfinished run.
        config_path: where the file came from; a run's own file is repeated beside it.
        on_step: called after each step, where this process trains.
        on_status: called with what `status.json` says, now and then, where others train.

    Raises:
        UserError, WorkError: as the exception tree says.
    """
    root = place_run(runs_dir, config.name, config_path, resume).root.resolve()
    if address is None and config.scale.workers == 1:
        return _train_here(config, root, resume, on_step)
    check_folder(config, root, resume)
    with _ray(config, address, root) as host:
        placed = place(config, host, sweep=False)
        # Checked above; a worker that dies is started again and must find its own checkpoints.
        arguments = {"config": placed, "root": root, "resume": None}
        pending = host.submit(train_to_end, arguments, resources_of(placed))
        _follow(pending, RunPaths(root), on_status)
        result: RunResult = pending.result()
        return result


def _follow(pending: Pending, paths: RunPaths, on_status: Callable[[Status], None]) -> None:
    """Waits for a run in other processes, and tells meanwhile how far it is."""
    seen = Status.read(paths.status)  # of an earlier attempt
    while not pending.done():
        time.sleep(FOLLOW_S)
        status = None
        with suppress(RunFolderError):  # what can't be read is no reason to end the run
            status = Status.read(paths.status)
        if status is not None and status != seen:
            seen = status
            on_status(status)


def sweep(
    config: ExperimentConfig,
    *,
    runs_dir: Path = RUNS,
    address: str | None = None,
    resume: bool = False,
    config_path: Path | None = None,
    listen: Listener = lambda event: None,
) -> Table:
    """Runs a file's whole pipeline on Ray: search, ensemble, student, comparison.

    Raises:
        ConfigError: if the file has no `sweep` section.
        UserError, WorkError: as the exception tree says.
    """
    if config.sweep is None:
        raise ConfigError("the file has no `sweep` section; use `orch train`, or add one")
    root = place_run(runs_dir, config.name, config_path, resume).root.resolve()
    with _ray(config, address, root) as host:
        return pipeline.sweep(config, host=host, root=root, resume=resume, listen=listen)


def evaluate(target: str | Path, split: str = "val", *, runs_dir: Path = RUNS) -> Line:
    """How good a run or an ensemble is on a split; a sweep stands for its ensemble or best trial.

    Reading `test` is recorded in the run folders that answered.

    Raises:
        RunFolderError: if there is nothing trained behind the target.
    """
    root = find_one(str(target), runs_dir).root
    found = resolve_target(root, runs_dir)
    worker = SingleWorker(default_device())
    members = [found.path]
    if found.kind == "ensemble":
        members = [member.path for member in read_ensemble(found.path).members]
    for root in members:
        predict_run(worker=worker, root=root, split=split)
    line = ensemble_line if found.kind == "ensemble" else run_line
    return line(found.path.name, found.path, split)


def measure(
    target: str | Path, split: str = "val", *, runs_dir: Path = RUNS
) -> dict[str, float] | None:
    """What the task of a run with an answer for each token reports of a split, by metric's name.

    Reading `test` is recorded in the run's folder.

    Returns:
        None where the target has one answer a sample; `evaluate` is for those.

    Raises:
        RunFolderError: if there is nothing trained behind the target.
    """
    root = find_one(str(target), runs_dir).root
    if resolve_target(root, runs_dir).kind != "run" or not read_spec(root).per_token:
        return None
    found = measure_run(worker=SingleWorker(default_device()), root=root, split=split)
    return {name.partition("/")[2]: value for name, value in found.values.items()}


def ensemble(
    targets: Sequence[str | Path], config: EnsembleConfig, *, name: str, runs_dir: Path = RUNS
) -> EnsembleFile:
    """Chooses an ensemble from runs (a sweep stands for its trials); kept in `runs/<name>`.

    Raises:
        RunFolderError: if the name is taken, or nothing behind the targets is trained.
    """
    candidates: list[Path] = []
    for target in (resolve_target(text, runs_dir) for text in targets):
        found = target.paths.trial_folders() if target.kind == "sweep" else [target.paths]
        candidates += [paths.root for paths in found if paths.model_json.exists()]
    if not candidates:
        raise RunFolderError("none of these holds a trained model; finish a run first")
    folder = runs_dir / name
    if folder.exists():
        raise RunFolderError(f"{folder} exists already; choose --name")
    return build_ensemble(candidates, config, folder.resolve())


def distill(
    config: ExperimentConfig,
    teacher: str | Path,
    *,
    runs_dir: Path = RUNS,
    resume: bool = False,
    on_step: Callable[[StepInfo], None] = lambda info: None,
) -> RunResult:
    """Trains a student of a run or an ensemble, in this process; kept in `runs/<name>-student`.

    Raises:
        UserError, WorkError: as the exception tree says.
    """
    found = find_teacher(resolve_target(teacher, runs_dir))
    section = config.distill or DistillConfig()
    stored = RunPaths(found.folder).predictions("train").exists()
    if section.teacher_sees == "plain" and not stored:
        worker = SingleWorker(default_device())
        answers = [predict_run(worker=worker, root=r, split="train") for r, _ in found.members]
        distillation.write_soft_targets(found, answers)
    student = distillation.student_config(config, section, found)
    root = (runs_dir / f"{config.name}-student").resolve()
    return _train_here(student, root, resume, on_step)


def doctor(
    config: ExperimentConfig | None = None,
    *,
    runs_dir: Path = RUNS,
    address: str | None = None,
    workers: int | None = None,
    steps: int = 8,
    parity: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Examination:
    """Examines this machine, or the cluster behind an address; see `examine_cluster`.

    Raises:
        UserError: for an address that can't be reached, or more workers than there is room for.
    """
    from orchestrator.launch.examination import examine_cluster

    return examine_cluster(
        config,
        runs_dir=runs_dir,
        address=address,
        workers=workers,
        steps=steps,
        parity=parity,
        say=say,
    )


def load_model(target: str | Path, *, runs_dir: Path = RUNS) -> tuple[nn.Module, ModelSpec]:
    """A run's trained network on the CPU in evaluation mode, and how to feed it.

    Raises:
        RunFolderError: if the target is no run, or has no trained model.
    """
    found = resolve_target(target, runs_dir)
    if found.kind != "run":
        raise RunFolderError(f"{found.path} is a {found.kind}; name one of its runs")
    return load_model_file(found.path)


@dataclass(frozen=True)
class Plan:
    """What a file would do, found out without training.

    Attributes:
        sizes: samples of each split.
        shape: of one sample; see `DataInfo`.
        weights: what `model.weights` gives the network; None where it names no file.
        trials: of a sweep.
        memory: what each engine takes, what fits, and a proposal; None where it was not asked for,
            or where the network can't run without numbers.
        memory_note: why it can't.
        shortages: what this machine lacks for such a run, each with the way out; empty for a
            cluster, which is asked itself.
        step_seconds: seconds of an optimizer step, as an earlier run of this file measured it
            here, without what several workers tell each other; None where none did.
    """

    sizes: dict[str, int]
    shape: tuple[int, ...]
    steps_per_epoch: int
    total_steps: int
    parameters: int
    trainable: int
    weights: str | None
    trials: int
    workers: int
    batch_size: int
    memory: MemoryReport | None = None
    memory_note: str = ""
    shortages: tuple[str, ...] = ()
    step_seconds: float | None = None


def plan(config: ExperimentConfig, *, memory: bool = False, address: str | None = None) -> Plan:
    """Reads the data and the weights file, and builds the network on the meta device.

    Args:
        memory: plan memory and work too.
        address: of the cluster whose nodes' memory counts; by default all workers are to find
            place on this machine.

    Raises:
        ResourceError: if the cluster can't be reached, or has no place for a worker.
        UserError: for a model that does not fit the data, weights that do not fit the model, a
            pattern that freezes nothing, …
    """
    load_plugins(config.plugins)
    loader = build_loader(config, SingleWorker("cpu"))
    task: Task = build("task", config.task)
    size = describe_network(config, task, loader)
    per_epoch = loader.steps_per_epoch
    found = Plan(
        dict(loader.info.sizes),
        loader.info.shape,
        per_epoch,
        steps_of(config, per_epoch),
        size.parameters,
        size.trainable,
        size.weights,
        config.sweep.trials if config.sweep else 0,
        config.scale.workers,
        config.train.batch_size,
    )
    return _with_memory(found, config, task, loader.info, address) if memory else found


def _with_memory(
    found: Plan, config: ExperimentConfig, task: Task, info: DataInfo, address: str | None
) -> Plan:
    """A plan with memory and, where this file was measured here before, time."""
    room = None
    if address is None:
        config = _placed_here(config)
        found = replace(found, shortages=shortages(config))
    else:
        from orchestrator.launch.rooms import place_there

        config, room = place_there(config, address)
    device = _device_of(config)
    use_threads(config)
    measured = known(config, info, device)
    if measured:
        changes = {PRECISION: measured.precision, MEMORY_FORMAT: measured.memory_format}
        config = derive(config, changes)
    if config.train.micro_batch == "auto":
        readers = copies(config.engine, config.scale.workers)
        config = derive(config, {MICRO_BATCH: micro_batch(config, readers)})
    seconds = measured.seconds if measured else None
    try:
        planner = MemoryPlanner(config, task=task, info=info, device=device, room=room)
        memory = report(planner)
    except UserError as error:
        return replace(found, memory_note=str(error), step_seconds=seconds)
    return replace(found, memory=memory, step_seconds=seconds)


def default_device() -> torch.device:
    """The first GPU where there is one, the CPU otherwise."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def _train_here(
    config: ExperimentConfig, root: Path, resume: bool, on_step: Callable[[StepInfo], None]
) -> RunResult:
    """Trains in this process, on all of its cores unless the file says otherwise."""
    config = _placed_here(config)
    device = _device_of(config)
    InProcessHost(device).capacity(resources_of(config))
    steps = run(config, worker=SingleWorker(device), root=root, resume=resume)
    while True:
        try:
            info = next(steps)
        except StopIteration as end:
            result: RunResult = end.value
            return result
        on_step(info)


def _placed_here(config: ExperimentConfig) -> ExperimentConfig:
    """The file with `auto` cores and GPUs replaced by this machine's."""
    scale = config.scale
    cores = max(len(os.sched_getaffinity(0)) // scale.workers, 1)
    cpus = cores if scale.cpus == "auto" else scale.cpus
    gpus = float(torch.cuda.is_available()) if scale.gpus == "auto" else scale.gpus
    return derive(config, {"scale.cpus": cpus, "scale.gpus": gpus})


def _device_of(config: ExperimentConfig) -> torch.device:
    """What a worker of a placed file computes on, as far as this machine has it."""
    return default_device() if config.scale.gpus else torch.device("cpu")


@contextmanager
def _ray(config: ExperimentConfig, address: str | None, root: Path) -> Iterator[RayHost]:
    """A Ray host for the length of a block; tracebacks of what fails go to the run's logs."""
    from orchestrator.launch.cluster import start_or_attach
    from orchestrator.launch.ray_host import RayHost

    session = start_or_attach(address, modules=named_modules(config))
    host = RayHost(session, traces=RunPaths(root).logs)
    try:
        yield host
    finally:
        host.close()
