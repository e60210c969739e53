"""Resolves every `auto` of a file, once, by measurement on a throw-away copy of the network."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from orchestrator.compiling import FEWEST_STEPS, LONG_SECONDS, Trial, try_compiling
from orchestrator.config.engines import PipelineEngineConfig, PlainEngineConfig, copies
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive
from orchestrator.config.training import TrainConfig
from orchestrator.data.types import DataInfo, GlobalBatch, Loader
from orchestrator.engine.pipeline_cut import balanced, check_stages, stage_seconds
from orchestrator.engine.plain import PlainEngine
from orchestrator.engine.shared import autocast, place_inputs, set_memory_format
from orchestrator.errors import UserError
from orchestrator.files import cache_root, read_json, write_json
from orchestrator.host import SingleWorker, Worker
from orchestrator.networks import build_network
from orchestrator.plan import engine as auto_engine
from orchestrator.recovery import is_out_of_memory, release
from orchestrator.seeding import AUTO
from orchestrator.seeding import derive as derive_seed
from orchestrator.tasks.base import Task

PRECISION, MEMORY_FORMAT, MICRO_BATCH, COMPILE = (
    "train.precision",
    "train.memory_format",
    "train.micro_batch",
    "train.compile",
)
CUT = "engine.cut"
TOLERANCE = 0.05
"""Largest relative difference from fp32's loss at which a faster choice is still taken."""
GAIN = 0.97
"""A choice must take at most this share of the plainer one's time to replace it."""
WARMUP, TIMED = 2, 4
PIPED = 4
"""Micro-batches of a pipeline for each of its stages, where the file leaves it open."""


@dataclass(frozen=True)
class Measurement:
    """One combination: median seconds a step, and the loss after the last."""

    precision: str
    memory_format: str
    seconds: float
    loss: float

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format}: {self.seconds * 1000:.0f} ms a step"


def is_open(config: ExperimentConfig) -> bool:
    """Whether a file leaves something to be resolved."""
    train = config.train
    open_ = (train.precision, train.memory_format, train.micro_batch, train.compile)
    return "auto" in open_ or _uncut(config)


def adopt(config: ExperimentConfig, earlier: ExperimentConfig) -> ExperimentConfig:
    """The file with each `auto` replaced by what an earlier run of it resolved to."""
    changes = {}
    for key in (PRECISION, MEMORY_FORMAT, MICRO_BATCH, COMPILE):
        name = key.split(".")[1]
        if getattr(config.train, name) == "auto":
            changes[key] = getattr(earlier.train, name)
    if config.train.batch_size != earlier.train.batch_size:
        # It may not even fit, and then it, not the other batch, would be complained of.
        changes.pop(MICRO_BATCH, None)
    if _uncut(config):
        changes[CUT] = getattr(earlier.engine, "cut", None)
    return auto_engine.adopt_engine(derive(config, changes) if changes else config, earlier)


def resolve(
    config: ExperimentConfig, *, task: Task, loader: Loader, worker: Worker
) -> tuple[ExperimentConfig, list[Measurement | Trial]]:
    """Replaces `auto` by what is fastest here within the loss tolerance.

    Rank 0 measures and the others wait, so that all of them take the same choice. The result
    is cached by network, input, machine and threads.

    Returns:
        The resolved file, and what was measured (nothing where the cache knew).
    """
    changes: dict[str, object] = {}
    measured: list[Measurement | Trial] = []
    seconds = math.nan
    if config.train.micro_batch == "auto" and has_one_batch_size(config):
        # By the file, not by this group: one process prepares a sweep of trials of several workers.
        changes[MICRO_BATCH] = micro_batch(config, copies(config.engine, config.scale.workers))
    if "auto" in (config.train.precision, config.train.memory_format):
        if worker.is_main:
            best, steps = _fastest(config, task, loader, worker.device)
            measured += steps
            seconds = best.seconds
            changes |= {PRECISION: best.precision, MEMORY_FORMAT: best.memory_format}
        changes = worker.broadcast(changes)
    config = derive(config, changes) if changes else config
    # Where each trial is given an engine of its own, whether it can be compiled is its own too.
    if config.train.compile == "auto" and not auto_engine.is_open(config):
        trial = None
        if worker.is_main:
            trial = _compiled(config, task, loader, worker.device, seconds)
        trial = worker.broadcast(trial)
        config = derive(config, {COMPILE: bool(trial and trial.kept)})
        measured += [trial] if trial else []
    if _uncut(config):
        config = derive(config, {CUT: _agreed_cut(config, task, loader, worker)})
    return config, measured


def micro_batch(config: ExperimentConfig, readers: int) -> int:
    """Samples of a micro-batch: the file's number, or so many that each reader has one.

    In a pipeline it has several for each stage, for while the first and the last of them pass
    through, stages wait.
    """
    size = config.train.micro_batch
    if isinstance(size, int):
        return size
    parts = PIPED * config.engine.stages if isinstance(config.engine, PipelineEngineConfig) else 1
    return math.ceil(config.train.batch_size / (readers * parts))


def has_one_batch_size(config: ExperimentConfig) -> bool:
    """Whether trials and students have the file's batch; those that don't cut their own."""
    searched = config.sweep.space if config.sweep else {}
    given = config.distill.set if config.distill else {}
    return "train.batch_size" not in {**searched, **given}


def _uncut(config: ExperimentConfig) -> bool:
    """Whether a pipeline's cut is to be measured. Models that are searched are cut one by one."""
    engine = config.engine
    searched = config.sweep.space if config.sweep else ()
    return (
        isinstance(engine, PipelineEngineConfig)
        and engine.cut is None
        and engine.balance == "time"
        and not any(key.startswith("model.") for key in searched)
    )


def _agreed_cut(
    config: ExperimentConfig, task: Task, loader: Loader, worker: Worker
) -> tuple[int, ...]:
    """Rank 0's cut on every rank; where it can't be, every rank says why."""
    found: tuple[int, ...] | UserError | None = None
    if worker.is_main:
        try:
            found = _even_cut(config, task, loader, worker.device)
        except UserError as error:
            found = error
    found = worker.broadcast(found)
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found


def _even_cut(
    config: ExperimentConfig, task: Task, loader: Loader, device: torch.device
) -> tuple[int, ...]:
    """The cut whose slowest part is fastest, measured on the first micro-batch."""
    engine, train = config.engine, config.train
    assert isinstance(engine, PipelineEngineConfig)
    path = cache_root() / "auto" / f"cut-{_key(config, loader.info, device)}.json"
    with contextlib.suppress(OSError, ValueError):
        return tuple(read_json(path)[str(engine.stages)])
    with torch.random.fork_rng():
        network = _network(config, task, loader).train().to(device)
        check_stages(engine, network)
        channels_last = train.memory_format == "channels_last"
        if channels_last:
            set_memory_format(network, torch.channels_last)
        batch = place_inputs(next(loader.train(0)).micro_batches[0], device, channels_last)
        with autocast(device, train.precision):
            seconds = stage_seconds(network, batch.inputs)
    cut = balanced(seconds, engine.stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {str(engine.stages): list(cut)})
    return cut


def known(config: ExperimentConfig, info: DataInfo, device: torch.device) -> Measurement | None:
    """What an earlier run measured as fastest for the same file on the same hardware."""
    try:
        return Measurement(**read_json(_path(config, info, device)))
    except (OSError, ValueError, TypeError):
        return None


def _path(config: ExperimentConfig, info: DataInfo, device: torch.device) -> Path:
    return cache_root() / "auto" / f"{_key(config, info, device)}.json"


def _fastest(
    config: ExperimentConfig, task: Task, loader: Loader, device: torch.device
) -> tuple[Measurement, list[Measurement]]:
    if found := known(config, loader.info, device):
        return found, []
    candidates = list(itertools.product(_precisions(config, device), _formats(config, loader.info)))
    if len(candidates) == 1:
        precision, memory_format = candidates[0]
        return Measurement(precision, memory_format, math.nan, math.nan), []
    batches = list(itertools.islice(loader.train(0), WARMUP + TIMED))
    with torch.random.fork_rng():
        measured = [_measure(config, task, loader, device, batches, *c) for c in candidates]
    best = choose(measured)
    path = _path(config, loader.info, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(best))
    return best, measured


def choose(measured: list[Measurement]) -> Measurement:
    """The fastest whose loss stays near the first one's, which is the plainest.

    A choice that is hardly faster than a plainer one does not replace it.
    """
    plain = measured[0]
    best = plain
    for candidate in measured[1:]:
        near = abs(candidate.loss - plain.loss) <= TOLERANCE * max(abs(plain.loss), 1e-3)
        if near and candidate.seconds < GAIN * best.seconds:
            best = candidate
    return best


def _compiled(
    config: ExperimentConfig, task: Task, loader: Loader, device: torch.device, seconds: float
) -> Trial | None:
    """The attempt to compile, or None where compiling is no question.

    Args:
        seconds: of a step, NaN where it was not measured.
    """
    if not isinstance(config.engine, PlainEngineConfig):
        return None
    steps = max(config.train.duration.steps(loader.steps_per_epoch), 1)
    if steps < FEWEST_STEPS or seconds * steps < LONG_SECONDS:
        return None
    batches = list(itertools.islice(loader.train(0), WARMUP + TIMED))

    def make(compile: bool) -> PlainEngine:
        train = config.train.model_copy(update={"compile": compile})
        return _engine(config, task, loader, device, train)

    try:
        with torch.random.fork_rng():
            return try_compiling(
                make,
                task,
                batches,
                config.optimizer.lr / 10,  # type: ignore[attr-defined]
                precision=config.train.precision,
                steps=steps,
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Training meets the same, and begins again with smaller micro-batches.
        release(error)
        return None


def _precisions(config: ExperimentConfig, device: torch.device) -> list[str]:
    if config.train.precision != "auto":
        return [config.train.precision]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return ["fp32", "fp16"]
    return ["fp32", "bf16"]


def _formats(config: ExperimentConfig, info: DataInfo) -> list[str]:
    if config.train.memory_format != "auto":
        return [config.train.memory_format]
    return ["contiguous", "channels_last"] if len(info.shape) == 3 else ["contiguous"]


def _measure(
    config: ExperimentConfig,
    task: Task,
    loader: Loader,
    device: torch.device,
    batches: list[GlobalBatch],
    precision: str,
    memory_format: str,
) -> Measurement:
    train = config.train.model_copy(update={"precision": precision, "memory_format": memory_format})
    engine = _engine(config, task, loader, device, train)
    seconds, loss = [], math.nan
    for batch in batches:
        began = time.perf_counter()
        # A tenth of the rate: the choice must not hang on a step that diverges.
        loss = float(engine.train_step(task, batch, config.optimizer.lr / 10).loss)  # type: ignore[attr-defined]
        seconds.append(time.perf_counter() - began)
    engine.close()
    timed = seconds[WARMUP:] or seconds
    return Measurement(precision, memory_format, statistics.median(timed), loss)


def _engine(
    config: ExperimentConfig, task: Task, loader: Loader, device: torch.device, train: TrainConfig
) -> PlainEngine:
    """An engine around a throw-away copy, the same each time."""
    return PlainEngine(
        PlainEngineConfig(),
        model=_network(config, task, loader),
        optimizer=config.optimizer,  # type: ignore[arg-type]
        train=train,
        seed=config.seed,
        worker=SingleWorker(device),
    )


def _network(config: ExperimentConfig, task: Task, loader: Loader) -> nn.Module:
    """A throw-away copy."""
    torch.manual_seed(derive_seed(config.seed, AUTO))
    return build_network(
        config.model,  # type: ignore[arg-type]
        outputs=task.outputs(loader.info),
        shape=loader.info.shape,
        vocabulary=loader.info.vocabulary,
        per_token=task.per_token,
        recompute=config.train.checkpoint_activations,
    )


def _key(config: ExperimentConfig, info: DataInfo, device: torch.device) -> str:
    """What a measurement depends on."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    facts = {
        "model": config.model.model_dump(mode="json", exclude={"weights"}),
        "task": config.task.type,
        "shape": [*info.shape, *([info.vocabulary] if info.vocabulary else [])],
        "batch": [config.train.batch_size, config.train.micro_batch, config.scale.workers],
        "train": [config.train.precision, config.train.memory_format],
        "chip": chip,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "optimizer": config.optimizer.type,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return hashlib.sha256("".join(wanted).encode()).hexdigest() + str(os.cpu_count())
