"""A step of two workers under ZeRO 1, 2 and 3, against DeepSpeed stage 0.

The engines live side by side in the same two processes of Ray Train and take turns: same network,
batch of 128 a worker, precision, memory format and optimizer. Run with
``python -m benchmarks.zero_step``; prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import alternate, machine
from benchmarks.train_step import BATCH, FixedLoader, network
from orchestrator.config.base import build
from orchestrator.config.engines import DeepSpeedEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import GlobalBatch
from orchestrator.host import Resources, Worker

WORKERS = 2
STEPS = {"efficientnet_small": 10, "resnet18": 1}
"""Steps that are timed together."""


def side(worker: Worker, name: str, precision: str, stage: int) -> Callable[[], float]:
    """Seconds of one step of a stage, over some of them."""
    train = TrainConfig.model_validate(
        {"precision": precision, "memory_format": "channels_last", "batch_size": BATCH * WORKERS}
    )
    engine = build(
        "engine",
        DeepSpeedEngineConfig(zero_stage=stage),
        model=network(name),
        optimizer=AdamW(),
        train=train,
        seed=0,
        worker=worker,
    )
    task = build("task", ClassifyTask())
    batches = itertools.cycle(FixedLoader(4).batches)

    def steps() -> float:
        worker.barrier()
        began = time.perf_counter()
        for batch in itertools.islice(batches, STEPS[name]):
            share = GlobalBatch(
                0, batch.index, BATCH * WORKERS, batch.micro_batches, (worker.rank,)
            )
            engine.train_step(task, share, 1e-3)
        worker.barrier()
        return (time.perf_counter() - began) / STEPS[name]

    return steps


def measure(*, worker: Worker, name: str, precision: str, rounds: int) -> dict[str, Any]:
    """All stages in turn; the stage that the others are held against is the first."""
    sides = {f"ZeRO {stage}": side(worker, name, precision, stage) for stage in range(4)}
    return alternate(sides, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    from orchestrator.launch.ray_host import RayHost

    host, results = RayHost(), {}
    try:
        for name in arguments.networks:
            for precision in ("bf16", "fp32"):
                about = {"name": name, "precision": precision, "rounds": arguments.rounds}
                pending = host.submit(measure, about, Resources(WORKERS, 1, 0))
                results[f"{name} {precision}"] = pending.result()
    finally:
        host.close()
    print(
        json.dumps({"benchmark": "zero_step", "machine": machine(), "results": results}, indent=2)
    )


if __name__ == "__main__":
    main()
