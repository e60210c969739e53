"""Parity: the same seeded run computes the same losses, however it is spread and sharded."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive
from orchestrator.errors import ConfigError, UserError
from orchestrator.host import Worker
from orchestrator.loop import RunState, fit
from orchestrator.optim.optimizers import peak_rate
from orchestrator.optim.schedules import build_schedule
from orchestrator.parts import Parts, prepare

Precision = Literal["fp32", "bf16"]
TOLERANCE: Mapping[str, float] = {"fp32": 1e-3, "bf16": 3e-2}
"""Largest relative difference of a step's loss from the same precision on one worker."""
LOWER = 5e-2
"""The same for a lower precision against fp32, both on one worker."""
REACH_BYTES = 4 << 20

EXAMPLE: Mapping[str, Any] = {
    "name": "doctor",
    "data": {"source": {"type": "digits"}, "augment": [{"type": "crop", "padding": 1}]},
    "model": {"type": "resnet18", "width": 0.125, "dropout": 0.1},
    "optimizer": {"type": "sgd", "lr": 0.05, "momentum": 0.9},
}
"""What is trained where no file is given: convolutions, BatchNorm, dropout, momentum."""


@dataclass(frozen=True)
class Variant:
    """One way to run the same experiment; `why_not` says why it can't be run."""

    name: str
    workers: int
    precision: Precision
    config: ExperimentConfig | None
    why_not: str = ""

    @property
    def label(self) -> str:
        """What tells it from the others."""
        count = f"{self.workers} worker{'s' * (self.workers > 1)}"
        return f"{self.name}, {count}, {self.precision}"


@dataclass(frozen=True)
class Trace:
    """Losses of one variant, step by step, or why there are none.

    Attributes:
        refused: whether the experiment itself rules the variant out.
    """

    losses: tuple[float, ...]
    error: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Reach:
    """How an all-reduce over the group went: its sum is right, and its seconds."""

    right: bool
    seconds: float
    backend: str


@dataclass(frozen=True)
class Verdict:
    """One line of the table.

    Attributes:
        against: the variant that it is compared with; empty for the first.
        difference: largest relative difference of a loss.
        differs_at: the first step, from 1, that differs by more than the tolerance.
        state: `skipped` where the experiment itself rules the variant out.
    """

    variant: Variant
    trace: Trace
    against: str
    difference: float
    differs_at: int | None
    state: Literal["ok", "failed", "skipped"]


def variants(config: ExperimentConfig, workers: int, gpus: float) -> list[Variant]:
    """Every way in which `workers` workers can run a file, one worker's first.

    All of them cut a batch into as many micro-batches as there are workers.
    """
    single: dict[str, Any] = {"sweep": None, "ensemble": None, "distill": None, "track": {}}
    micro = max(config.train.batch_size // workers, 1)
    common: dict[str, Any] = {
        **single,
        "train.micro_batch": micro,
        "train.memory_format": "contiguous",
        "scale.cpus": 1,
        "scale.gpus": gpus,
    }
    ways: list[tuple[str, int, dict[str, Any]]] = [("plain", 1, {"type": "plain"})]
    if workers > 1:
        ways.append(("plain", workers, {"type": "plain"}))
    ways += [
        (f"deepspeed, ZeRO {stage}", workers, {"type": "deepspeed", "zero_stage": stage})
        for stage in range(4)
    ]
    if workers > 1:
        ways.append(("pipeline of 2", workers, {"type": "pipeline", "stages": 2}))
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    return [
        _variant(config, common, name, count, engine, precision)
        for precision in precisions
        for name, count, engine in ways
    ]


def _variant(
    config: ExperimentConfig,
    common: Mapping[str, Any],
    name: str,
    workers: int,
    engine: Mapping[str, Any],
    precision: Precision,
) -> Variant:
    changes = {
        **common,
        "engine": dict(engine),
        "scale.workers": workers,
        "train.precision": precision,
    }
    try:
        return Variant(name, workers, precision, derive(config, changes))
    except ConfigError as error:
        return Variant(name, workers, precision, None, str(error))


def examine(
    *, worker: Worker, configs: Sequence[ExperimentConfig], steps: int
) -> tuple[Reach, list[Trace]]:
    """What one group of workers finds: its network's reach, and each file's losses."""
    return _reach(worker), [_trace(worker, config, steps) for config in configs]


def judge(ways: Sequence[Variant], traces: Mapping[str, Trace]) -> list[Verdict]:
    """Compares every variant with its precision's first, and that with fp32's.

    Args:
        traces: by label; a variant that the file rules out has none.
    """
    first = {precision: _first(ways, precision) for precision in ("fp32", "bf16")}
    verdicts = []
    for way in ways:
        leads = way is first[way.precision]
        reference = first["fp32"] if leads else first[way.precision]
        trace = traces.get(way.label, Trace((), way.why_not, refused=True))
        if trace.refused:
            verdicts.append(Verdict(way, trace, "", math.nan, None, "skipped"))
        elif trace.error:
            verdicts.append(Verdict(way, trace, "", math.nan, None, "failed"))
        else:
            tolerance = LOWER if leads else TOLERANCE[way.precision]
            expected = traces.get(reference.label, Trace(()))
            verdicts.append(_compare(way, trace, reference, expected, tolerance))
    return verdicts


def _first(ways: Sequence[Variant], precision: str) -> Variant:
    return next(way for way in ways if way.precision == precision)


def _compare(
    way: Variant, trace: Trace, reference: Variant, expected: Trace, tolerance: float
) -> Verdict:
    differences = [
        abs(a - b) / max(abs(b), 1e-3) for a, b in zip(trace.losses, expected.losses, strict=False)
    ]
    wrong = (n for n, one in enumerate(differences, start=1) if not one <= tolerance)
    at = next(wrong, None)
    if at is None and len(trace.losses) != len(expected.losses):
        at = len(differences) + 1
    against = "" if way is reference else reference.label
    state: Literal["ok", "failed"] = "ok" if at is None else "failed"
    return Verdict(way, trace, against, max(differences, default=math.nan), at, state)


def _trace(worker: Worker, config: ExperimentConfig, steps: int) -> Trace:
    try:
        parts, _ = prepare(config, worker)
        try:
            return Trace(tuple(_losses(parts, worker, steps)))
        finally:
            parts.close()
    except UserError as error:
        return Trace((), str(error), refused=True)
    except Exception as error:
        return Trace((), f"{type(error).__name__}: {error}")


def _losses(parts: Parts, worker: Worker, steps: int) -> list[float]:
    """Each step's loss over the samples of all ranks."""

    def never(*_: object) -> Any:
        raise AssertionError("nothing asks for it")

    config, per_epoch = parts.config, parts.loader.steps_per_epoch
    state = RunState(
        engine=parts.engine,
        task=parts.task,
        loader=parts.loader,
        worker=worker,
        schedule=build_schedule(
            config.schedule,  # type: ignore[arg-type]
            steps_per_epoch=per_epoch,
            total_steps=steps,
        ),
        lr=peak_rate(config.optimizer, config.train.batch_size),  # type: ignore[arg-type]
        total_steps=steps,
        evaluate=never,
        save=never,
        hooks=(),
    )
    return [
        worker.sum(info.loss.double().clone()).item() / worker.world_size for info in fit(state)
    ]


def _reach(worker: Worker) -> Reach:
    """An all-reduce of some megabytes, the second of two."""
    backend = "none" if worker.world_size == 1 else torch.distributed.get_backend()
    for _ in range(2):
        value = torch.full((REACH_BYTES // 4,), float(worker.rank + 1), device=worker.device)
        worker.barrier()
        began = time.perf_counter()
        value = worker.sum(value)
        right = bool((value == worker.world_size * (worker.world_size + 1) / 2).all())
        seconds = time.perf_counter() - began
    return Reach(right, seconds, backend)
