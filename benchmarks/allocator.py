"""Training steps with and without the memory of the last step kept for the next one.

What `keep_freed_memory` changes is a whole process's, so each side is a process of its own, which
trains with one thread while the other waits: the plain engine, batch 128, AdamW. Both sides take
turns in one run. Run with ``python -m benchmarks.allocator [--networks …]``; prints JSON, with the
page faults of a step and the peak memory of each side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing

from benchmarks.common import alternate, machine
from benchmarks.train_step import BATCH, FixedLoader, network
from orchestrator.allocator import keep_freed_memory
from orchestrator.config.base import build
from orchestrator.config.engines import PlainEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.engine.plain import PlainEngine
from orchestrator.host import SingleWorker

SIDES = {"memory kept": True, "memory given back": False}
STEPS = {"efficientnet_small": 12, "resnet18": 1}
"""Steps that are timed together."""


def train(orders: Connection, name: str, precision: str, keep: bool) -> None:
    """A side: trains when it is told to, and answers with what the steps took, until None comes."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    settings = TrainConfig(precision=precision, memory_format="channels_last")
    engine = PlainEngine(
        PlainEngineConfig(),
        model=network(name),
        optimizer=AdamW(),
        train=settings,
        seed=0,
        worker=SingleWorker(),
    )
    task, batches = build("task", ClassifyTask()), itertools.cycle(FixedLoader(4).batches)
    while (steps := orders.recv()) is not None:
        faults, began = _usage().ru_minflt, time.perf_counter()
        for batch in itertools.islice(batches, steps):
            engine.train_step(task, batch, 1e-3)
        seconds = (time.perf_counter() - began) / steps
        orders.send((seconds, (_usage().ru_minflt - faults) / steps, _usage().ru_maxrss))


def measure(name: str, precision: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both sides, in turns; then their page faults and peaks."""
    context = torch.multiprocessing.get_context("spawn")
    orders, processes, last = {}, [], {}
    for side, keep in SIDES.items():
        orders[side], theirs = context.Pipe()
        arguments = (theirs, name, precision, keep)
        processes.append(context.Process(target=train, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # so that a side that ends is noticed

    def turn(side: str) -> Callable[[], float]:
        def work() -> float:
            orders[side].send(STEPS[name])
            last[side] = orders[side].recv()
            return float(last[side][0])

        return work

    found = alternate({side: turn(side) for side in SIDES}, rounds)
    for side, process in zip(SIDES, processes, strict=True):
        orders[side].send(None)
        process.join()
    found["page faults a step"] = {side: round(faults) for side, (_, faults, _) in last.items()}
    found["peak MiB"] = {side: round(peak / 1024) for side, (_, _, peak) in last.items()}
    return found


def _usage() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_SELF)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    results = {
        f"{name} {precision}": measure(name, precision, arguments.rounds)
        for name in arguments.networks
        for precision in ("bf16", "fp32")
    }
    document = {
        "benchmark": "allocator",
        "machine": machine(),
        "batch": BATCH,
        "results": results,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
