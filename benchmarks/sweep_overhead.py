"""What a sweep costs beyond its trials' own work.

Two claims, both in one run, on a cluster of this process's own with two trials at once:

- long: trials of 5 s each. The whole sweep (workers' start and end included) takes at most 1.10
  times what the work alone takes, spread over the slots.
- short: trials of 1 s each, ours against a stock `Tuner` whose trials start a `TorchTrainer` each:
  at least 4 times the trials a minute.

A trial's work is a fixed number of matrix products on one thread, the number measured at the start.
Run with ``python -m benchmarks.sweep_overhead [--quick] [-o FILE]``; prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from orchestrator.files import write_json
from orchestrator.host import Resources, TrialJob
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_host import RayHost

SLOTS = 2
SIZE = 256


def products(count: int) -> None:
    """The unit of work: `count` products of two square matrices."""
    torch.manual_seed(0)
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    for _ in range(count):
        left = torch.tanh(left @ right)


def products_per_second(seconds: float = 2.0) -> float:
    """How many products one thread of this machine makes a second, with nothing beside it."""
    torch.set_num_threads(1)
    products(200)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        products(100)
        count += 100
    return count / (time.perf_counter() - began)


def trial(worker: Any, count: int) -> Generator[Mapping[str, Any], None, None]:
    """A trial that reports five times and says how long its own work took."""
    began = time.perf_counter()
    for step in range(5):
        products(count // 5)
        yield {"step": step, "seconds": time.perf_counter() - began}


class Stream:
    """A fixed number of equal trials, none stopped."""

    def __init__(self, trials: int, count: int) -> None:
        self._waiting = [TrialJob(str(n), trial, {"count": count}) for n in range(trials)]
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def next(self) -> TrialJob | None:
        """See `TrialStream`."""
        return self._waiting.pop(0) if self._waiting else None

    def report(self, id: str, report: Mapping[str, Any]) -> bool:
        """See `TrialStream`."""
        self.seconds[id] = report["seconds"]
        return False

    def finished(self, id: str, error: str | None, crashed: bool = False) -> None:
        """See `TrialStream`."""
        if error:
            self.failed.append(error)


def ours(host: RayHost, trials: int, count: int) -> dict[str, float]:
    """One sweep through our host."""
    stream = Stream(trials, count)
    began = time.perf_counter()
    host.run_trials(stream, Resources(), SLOTS)
    wall = time.perf_counter() - began
    if stream.failed:
        raise RuntimeError(stream.failed[0])
    return _summary(wall, list(stream.seconds.values()))


def stock(trials: int, count: int) -> dict[str, float]:
    """The same trials as Ray's documentation nests them: a Tuner, and in it TorchTrainers."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def work(config: dict[str, Any]) -> float:
        torch.set_num_threads(1)
        began = time.perf_counter()
        products(config["count"])
        return time.perf_counter() - began

    def run(config: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = TorchTrainer(
                work,
                train_loop_config={"count": config["count"]},
                scaling_config=ScalingConfig(num_workers=1),
                run_config=RunConfig(storage_path=folder, name="run"),
            )
            tune.report({"seconds": trainer.fit().return_value})

    # Tune prints tables; standard output is for the JSON.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        began = time.perf_counter()
        results = tune.Tuner(
            tune.with_resources(run, {"CPU": 0.1}),
            param_space={"count": count},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=SLOTS),
            run_config=tune.RunConfig(storage_path=folder, name="sweep", verbose=0),
        ).fit()
        wall = time.perf_counter() - began
    return _summary(wall, [result.metrics["seconds"] for result in results])


def _summary(wall: float, seconds: list[float]) -> dict[str, float]:
    work = sum(seconds) / SLOTS
    return {
        "trials": len(seconds),
        "seconds_of_work_a_trial": round(sum(seconds) / len(seconds), 3),
        "wall_seconds": round(wall, 2),
        "work_seconds": round(work, 2),
        "wall_over_work": round(wall / work, 3),
        "trials_a_minute": round(60 * len(seconds) / wall, 2),
    }


def measure(quick: bool) -> dict[str, Any]:
    """Both claims, as one JSON object."""
    load = os.getloadavg()[0]
    speed = products_per_second()
    session_began = time.perf_counter()
    # One core more than the slots, for the stock side's outer trials: they hold 0.1 of a core.
    host = RayHost(start_or_attach(cpus=SLOTS + 1))
    started = time.perf_counter() - session_began
    try:
        short = {
            "ours": ours(host, 8 if quick else 32, round(speed)),
            "stock": stock(2 if quick else 6, round(speed)),
        }
        long = ours(host, 4 if quick else 64, round(5 * speed))
    finally:
        host.close()
    ratio = short["ours"]["trials_a_minute"] / short["stock"]["trials_a_minute"]
    return {
        "benchmark": "sweep_overhead",
        "machine": machine(),
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "quick": quick,
        "ray_start_seconds": round(started, 2),
        "short": short | {"times_the_trials_a_minute": round(ratio, 1), "target": 4.0},
        "long": long | {"target_wall_over_work": 1.10},
    }


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    result = measure(options.quick)
    if options.output:
        write_json(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
