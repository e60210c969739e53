"""Rules that look at several sections of a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.base import Part
from orchestrator.config.check import changed
from orchestrator.config.data import Csv, RayLoader
from orchestrator.config.duration import Duration
from orchestrator.config.engine_rules import pipeline_rules
from orchestrator.config.engines import copies
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.model import misfit
from orchestrator.config.pipeline import Choice, IntUniform, LogUniform, Uniform
from orchestrator.config.problems import Finding
from orchestrator.config.yaml import KeyPath
from orchestrator.errors import ConfigError, suggest

METRICS: Mapping[str, Mapping[str, str]] = {
    "classify": {"accuracy": "max", "top5": "max", "nll": "min", "loss": "min"},
    "distill": {"accuracy": "max", "top5": "max", "nll": "min", "loss": "min"},
    "language_model": {
        "nll": "min",
        "perplexity": "min",
        "token_accuracy": "max",
        "loss": "min",
    },
    "sequence_to_sequence": {
        "nll": "min",
        "perplexity": "min",
        "token_accuracy": "max",
        "bleu": "max",
        "loss": "min",
    },
}
"""What each of our tasks reports on an evaluated split, and which way is better."""

PER_TOKEN = ("language_model", "sequence_to_sequence")
"""Tasks with an answer for each token; the others have one for each sample."""

STREAMED = ("image_folder", "parquet")
"""Sources of our own that Ray Data can stream."""

FIXED_IN_SWEEPS = {
    "version": "is the file's own",
    "name": "names each trial's folder",
    "plugins": "is the whole sweep's",
    "data.source": "would make trials incomparable",
    "data.split": "would make trials incomparable, and an ensemble needs one split",
    "evaluate.monitor": "is what trials are compared by",
    "evaluate.mode": "is how trials are compared",
    "scale": "is what every run of the sweep is started with",
    "track": "does not change results",
    "sweep": "is the search itself",
    "ensemble": "follows the search",
    "distill": "follows the search",
    "serve": "does not change results",
}
FIXED_IN_STUDENTS = FIXED_IN_SWEEPS | {
    "task": "is replaced by distillation; set `distill.temperature` and `soft_weight` instead"
}
_MOST_PROBES = 64


def check_rules(config: ExperimentConfig) -> list[Finding]:
    """Everything that does not fit together in a file whose sections are right."""
    return [
        *_monitor(config),
        *_batches(config),
        *_sharding(config),
        *_precision(config),
        *_compiling(config),
        *pipeline_rules(config),
        *_loader(config),
        *_kinds(config),
        *_lengths(config),
        *_unfreezing(config),
        *_space(config),
        *_student(config),
    ]


def _monitor(config: ExperimentConfig) -> Iterator[Finding]:
    path, mode_path = ("evaluate", "monitor"), ("evaluate", "mode")
    split, _, metric = config.evaluate.monitor.partition("/")
    known = METRICS.get(config.task.type)
    if split != "val":
        message = f"is read on the val split, so write val/{metric} instead of {split}/{metric}"
        yield Finding(path, message)
    elif config.data.split.val == 0:
        yield Finding(
            ("data", "split", "val"),
            f"must be above 0, since evaluate.monitor is {config.evaluate.monitor}",
            (path,),
        )
    if known and metric not in known:
        message = f"the task {config.task.type!r} reports no {metric!r}; {suggest(metric, known)}"
        yield Finding(path, message, (("task", "type"),))
    elif known and known[metric] != config.evaluate.mode:
        better = "higher" if known[metric] == "max" else "lower"
        yield Finding(
            mode_path,
            f"{config.evaluate.monitor} is better when {better}, so set evaluate.mode: "
            f"{known[metric]}",
            (path, ("task", "type")),
        )
    if config.ensemble and config.data.split.select == 0:
        message = "must be above 0, since the ensemble is chosen on the select split"
        yield Finding(("data", "split", "select"), message, (("ensemble",),))


def _batches(config: ExperimentConfig) -> Iterator[Finding]:
    # The workers of one pipeline have the same samples.
    batch, workers = config.train.batch_size, copies(config.engine, config.scale.workers)
    micro = config.train.micro_batch
    also: tuple[KeyPath, ...] = (("scale", "workers"),)
    if workers > batch:
        yield Finding(
            ("train", "batch_size"),
            "is over all workers, so batch_size >= scale.workers must hold, "
            f"but got batch_size={batch}, workers={workers}",
            also,
        )
    elif isinstance(micro, int) and workers > 1 and micro > (most := math.ceil(batch / workers)):
        yield Finding(
            ("train", "micro_batch"),
            "must not exceed a worker's share, batch_size / scale.workers rounded up, "
            f"but got {micro} > {most} (batch_size={batch}, workers={workers}); take auto or less",
            (*also, ("train", "batch_size")),
        )


def _sharding(config: ExperimentConfig) -> Iterator[Finding]:
    stage = getattr(config.engine, "zero_stage", 0)
    why = getattr(config.optimizer, "whole_tensors", "")
    if stage and why:
        message = (
            f"{config.optimizer.type} needs every parameter whole ({why}), but "
            f"engine.zero_stage={stage} shards them; set it to 0, or choose adamw"
        )
        yield Finding(("optimizer", "type"), message, (("engine", "zero_stage"),))
    offload = getattr(config.engine, "offload", None)
    if config.train.ema and offload and offload.parameters == "nvme":
        message = "needs the parameters in memory, but engine.offload.parameters is nvme; use cpu"
        yield Finding(("train", "ema"), message, (("engine", "offload"),))


def _precision(config: ExperimentConfig) -> Iterator[Finding]:
    if config.train.precision == "fp16" and config.scale.gpus == 0:
        message = "fp16 needs a GPU, but scale.gpus is 0; use bf16 or auto, or set scale.gpus"
        yield Finding(("train", "precision"), message, (("scale", "gpus"),))


def _compiling(config: ExperimentConfig) -> Iterator[Finding]:
    if config.train.compile is True and config.engine.type not in ("plain", "auto"):
        yield Finding(
            ("train", "compile"),
            f"is for engine.type: plain, but got {config.engine.type}, which changes the network's "
            "parameters between its layers; set it to false, or use engine.type: plain",
            (("engine", "type"),),
        )


def _loader(config: ExperimentConfig) -> Iterator[Finding]:
    source = config.data.source.type
    ours = type(config.data.source).__module__ == "orchestrator.config.data"
    if isinstance(config.data.loader, RayLoader) and ours and source not in STREAMED:
        yield Finding(
            ("data", "loader", "type"),
            f"ray streams {' and '.join(STREAMED)}, but the source is {source!r}; use memory",
            (("data", "source"),),
        )


def _kinds(config: ExperimentConfig) -> Iterator[Finding]:
    """Images and texts, and what is asked of them."""
    source, task = config.data.source, config.task.type
    gives = getattr(source, "gives", "")
    whole: tuple[KeyPath, ...] = (("data", "source", "type"),)
    if why := misfit(config.model, gives):
        yield Finding(("model", "type"), why, whole)
    if gives == "tokens" and config.data.augment:
        yield Finding(("data", "augment"), "changes images, but the source gives text", whole)
    fits = _task_of(source)
    if fits and task in METRICS and task not in fits:
        message = f"{task} does not fit the answers that data.source gives; use {fits[0]}"
        yield Finding(("task", "type"), message, whole)
    elif task in PER_TOKEN and gives == "images":
        message = f"{task} learns text, but data.source gives images; use classify"
        yield Finding(("task", "type"), message, whole)
    for section in ("sweep", "ensemble", "distill"):
        if getattr(config, section) is None:
            continue
        if task in PER_TOKEN:
            message = f"compares models by one answer a sample, but {task} has one a token"
            yield Finding((section,), f"{message}; use `orch train` without it", (("task",),))
        elif section == "distill" and gives == "tokens":
            yield Finding((section,), "teaches networks for images only; remove it", whole)
    if task == "distill" and gives == "tokens":
        yield Finding(("task", "type"), "distill teaches networks for images only", whole)


def _task_of(source: Part) -> tuple[str, ...]:
    """The tasks that fit a table's answers; none where the file does not say."""
    if not isinstance(source, Csv):
        return ()
    return ("sequence_to_sequence",) if source.target is not None else ("classify", "distill")


def _lengths(config: ExperimentConfig) -> Iterator[Finding]:
    whole: tuple[KeyPath, ...] = (("train", "for"),)
    run = config.train.duration
    warmup = getattr(config.schedule, "warmup", None)
    if isinstance(warmup, Duration) and _share(warmup, run) > 1:
        message = f"must not be longer than train.for ({run}), got {warmup}"
        yield Finding(("schedule", "warmup"), message, whole)
    grace = getattr(config.sweep.scheduler, "grace", None) if config.sweep else None
    if isinstance(grace, Duration) and _share(grace, run) >= 1:
        message = (
            f"must be shorter than train.for ({run}), or no trial is ever stopped; got {grace}"
        )
        yield Finding(("sweep", "scheduler", "grace"), message, whole)


def _unfreezing(config: ExperimentConfig) -> Iterator[Finding]:
    train = config.train
    for number, one in enumerate(train.unfreeze):
        path: KeyPath = ("train", "unfreeze", number, "at")
        if one.at.value == 0:
            yield Finding(path, "must be above 0; what learns from the start needs no entry")
        elif _share(one.at, train.duration) >= 1:
            message = f"must be before the end of train.for ({train.duration}), got {one.at}"
            yield Finding(path, message, (("train", "for"),))
    if train.unfreeze and train.ema:
        message = "does not go with train.unfreeze: the average would start anew at each point"
        yield Finding(("train", "ema"), message, (("train", "unfreeze"),))


def _share(part: Duration, whole: Duration) -> float:
    """How much of the whole a part is; 0 where the units can't be compared."""
    if part.unit == "%":
        return part.value / 100
    return part.value / whole.value if part.unit == whole.unit else 0.0


# --- keys that stand for other keys ----------------------------------------------------------


def _space(config: ExperimentConfig) -> Iterator[Finding]:
    if config.sweep is None:
        return
    space = config.sweep.space
    kinds = {
        key: [value for value in one.values if not any(_misfits(config, {key: value}, key))]
        for key, one in space.items()
        if key.endswith(".type") and isinstance(one, Choice)
    }
    for key, distribution in space.items():
        path: KeyPath = ("sweep", "space", key)
        if why := _fixed(key, FIXED_IN_SWEEPS):
            yield Finding(path, f"can't be searched: it {why}")
            continue
        # A key must fit every type that is searched beside it: each trial gets all keys.
        around = [{name: value} for name in _outer(key, kinds) for value in kinds[name]] or [{}]
        problems = {
            message: None
            for value in _probes(distribution)
            for types in around
            for message in _misfits(config, {**types, key: value}, key)
        }
        yield from (Finding(path, message) for message in problems)


def _student(config: ExperimentConfig) -> Iterator[Finding]:
    if config.distill is None:
        return
    wanted = config.distill.set
    allowed = {}
    for key, value in wanted.items():
        if why := _fixed(key, FIXED_IN_STUDENTS):
            yield Finding(("distill", "set", key), f"can't be set for a student: it {why}")
        else:
            allowed[key] = value
    single = {"sweep": None, "ensemble": None, "distill": None}
    try:
        changed(config, allowed | single)
    except ConfigError as error:
        for problem in error.problems:
            cause = _nearest(problem.key, allowed)
            path: KeyPath = ("distill", "set", cause) if cause else ("distill", "set")
            about = "" if cause == problem.key else f"{problem.key}: "
            yield Finding(path, f"{about}{problem.message}")


def _fixed(key: str, table: Mapping[str, str]) -> str | None:
    return next((why for name, why in table.items() if f"{key}.".startswith(f"{name}.")), None)


def _outer(key: str, kinds: Mapping[str, Any]) -> list[str]:
    """The searched types of the sections around a key."""
    return [name for name in kinds if name != key and key.startswith(name.removesuffix("type"))]


def _probes(distribution: Part) -> list[Any]:
    """Values that stand for all: every choice, the ends of a range."""
    if isinstance(distribution, Choice):
        return list(distribution.values[:_MOST_PROBES])
    if isinstance(distribution, Uniform | LogUniform | IntUniform):
        return [distribution.low, distribution.high]
    return []


def _misfits(config: ExperimentConfig, changes: dict[str, Any], key: str) -> Iterator[str]:
    """Why one value of a searched key does not fit the file."""
    single = {"sweep": None, "ensemble": None, "distill": None}
    try:
        changed(config, changes | single)
    except ConfigError as error:
        others = {name: value for name, value in changes.items() if name != key}
        beside = "".join(f"with {name}={value}: " for name, value in others.items())
        for problem in error.problems:
            about = "" if problem.key == key else f"{problem.key}: " if problem.key else ""
            yield f"{beside}{about}{problem.message}"


def _nearest(key: str, allowed: Mapping[str, Any]) -> str | None:
    """Which of the set keys a problem belongs to."""
    if key in allowed:
        return key
    return next((name for name in allowed if key.startswith(name.removesuffix("type"))), None)
