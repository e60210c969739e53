"""What reporting and logging cost: the loop with all its hooks against a bare `for`.

Both sides call the same engine for the same batches. So that a few microseconds show beside
milliseconds of training, the engine of this measurement answers at once: what is left is the loop's
own time, and it is given in parts of a real step of each network. `metrics.jsonl` is really
written, as often as a run writes it. Run with ``python -m benchmarks.loop_cost``; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import alternate, machine
from benchmarks.train_step import FixedLoader, network
from orchestrator.config.base import build
from orchestrator.config.duration import Interval
from orchestrator.config.engines import PlainEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import GlobalBatch
from orchestrator.engine.plain import PlainEngine
from orchestrator.hooks import Every, Interrupt, KeepBest, Log
from orchestrator.host import SingleWorker
from orchestrator.loop import Evaluation, RunState, Signal, fit
from orchestrator.run_folder.paths import RunPaths
from orchestrator.tasks.base import StepOutput, Task
from orchestrator.tracking.run_file import RunFileTracker

STEPS = 20_000
LOG_EVERY = TrainConfig().log_every


class InstantEngine(PlainEngine):
    """A plain engine whose steps take no time."""

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """Gives the same loss at once."""
        return _OUTPUT


_OUTPUT = StepOutput(torch.tensor(1.0), torch.zeros(1))


def engine(kind: type[PlainEngine], name: str, precision: str) -> PlainEngine:
    train = TrainConfig.model_validate(
        {"precision": precision, "memory_format": "channels_last", "micro_batch": 128}
    )
    return kind(
        PlainEngineConfig(),
        model=network(name),
        optimizer=AdamW(),
        train=train,
        seed=0,
        worker=SingleWorker(),
    )


def with_the_loop(instant: PlainEngine, loader: FixedLoader, folder: Path) -> Callable[[], float]:
    """Seconds of `STEPS` steps through the loop, its hooks and the run's own tracker."""
    tracker = RunFileTracker(RunPaths(folder))
    never = Interval(10**9)

    def one_pass() -> float:
        state = RunState(
            engine=instant,
            task=build("task", ClassifyTask()),
            loader=loader,
            worker=SingleWorker(),
            schedule=lambda step: 1.0,
            lr=1e-3,
            total_steps=STEPS,
            evaluate=lambda: Evaluation("val", {"val/accuracy": 0.0}),
            save=lambda state: None,
            hooks=[
                Log(tracker, LOG_EVERY),
                Every(Signal.EVALUATE, never),
                Every(Signal.CHECKPOINT, never),
                KeepBest("val/accuracy", "max"),
                Interrupt(),
            ],
        )
        began = time.perf_counter()
        for _ in fit(state):
            pass
        return time.perf_counter() - began

    return one_pass


def bare(instant: PlainEngine, loader: FixedLoader) -> Callable[[], float]:
    """Seconds of as many steps without a loop around them."""
    task = build("task", ClassifyTask())

    def one_pass() -> float:
        began = time.perf_counter()
        for _ in range(STEPS // len(loader.batches)):
            for batch in loader.batches:
                instant.train_step(task, batch, 1e-3)
        return time.perf_counter() - began

    return one_pass


def step_seconds(name: str, precision: str, loader: FixedLoader) -> float:
    """Median seconds of a real step of a network, batch 128, 28×28 pixels."""
    real, task = engine(PlainEngine, name, precision), build("task", ClassifyTask())
    seconds = []
    for batch in loader.batches[:1] + loader.batches:
        began = time.perf_counter()
        real.train_step(task, batch, 1e-3)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["efficientnet_small", "resnet18"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    loader = FixedLoader(10)
    instant = engine(InstantEngine, "efficientnet_small", "fp32")
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare": bare(instant, loader),
            "loop": with_the_loop(instant, loader, Path(folder)),
        }
        measured = alternate(sides, arguments.rounds)
    each = {name: one["median"] / STEPS for name, one in measured["seconds"].items()}
    cost = each["loop"] - each["bare"]
    shares: dict[str, Any] = {}
    for name in arguments.networks:
        for precision in ("bf16", "fp32"):
            step = step_seconds(name, precision, loader)
            shares[f"{name} {precision}"] = {
                "step_ms": round(step * 1000, 3),
                "cost_percent": round(100 * cost / step, 4),
            }
    document = {
        "benchmark": "loop_cost",
        "machine": machine(),
        "log_every": LOG_EVERY,
        "microseconds_per_step": round(cost * 1e6, 2),
        "share_of_a_step": shares,
        "measured": measured,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
