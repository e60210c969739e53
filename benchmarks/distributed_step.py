"""A step of two workers: ours with DeepSpeed stage 0 on Ray Train, against torchrun with DDP.

Same network, batch of 128 a worker, precision, memory format and optimizer on both sides; each
side is started anew for each round, in turn, and its steps are timed after some to warm up. Run
with ``python -m benchmarks.distributed_step``; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from benchmarks.common import alternate, machine
from benchmarks.train_step import BATCH, FixedLoader, network
from orchestrator.config.base import build
from orchestrator.config.engines import DeepSpeedEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import GlobalBatch
from orchestrator.engine.shared import set_memory_format
from orchestrator.host import Resources, Worker

WORKERS, WARMUP = 2, 2
STEPS = {"efficientnet_small": 20, "resnet18": 3}


def ours(*, worker: Worker, name: str, precision: str, steps: int) -> float:
    """Median seconds of a step on rank 0."""
    train = TrainConfig.model_validate(
        {"precision": precision, "memory_format": "channels_last", "batch_size": BATCH * WORKERS}
    )
    engine = build(
        "engine",
        DeepSpeedEngineConfig(zero_stage=0),
        model=network(name),
        optimizer=AdamW(),
        train=train,
        seed=0,
        worker=worker,
    )
    task = build("task", ClassifyTask())
    seconds = []
    for batch in FixedLoader(WARMUP + steps).batches:
        share = GlobalBatch(0, batch.index, BATCH * WORKERS, batch.micro_batches, (worker.rank,))
        began = time.perf_counter()
        engine.train_step(task, share, 1e-3)
        seconds.append(time.perf_counter() - began)
    engine.close()
    return statistics.median(seconds[WARMUP:])


def by_hand(name: str, precision: str, steps: int) -> None:
    """One rank under torchrun: a loop as one would write it; rank 0 prints the median step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = network(name).train()
    set_memory_format(model, torch.channels_last)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3, fused=True)
    seconds = []
    for batch in FixedLoader(WARMUP + steps).batches:
        began = time.perf_counter()
        micro = batch.micro_batches[0]
        x = micro.inputs["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(parallel(x).float(), micro.targets["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(statistics.median(seconds[WARMUP:]))
    dist.destroy_process_group()


def torchrun(name: str, precision: str, steps: int) -> float:
    """Runs `by_hand` on two ranks."""
    module = ["-m", "benchmarks.distributed_step", "--by-hand", name, precision, str(steps)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={WORKERS}", *module],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-hand", nargs=3, metavar=("NAME", "PRECISION", "STEPS"))
    parser.add_argument("--networks", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.by_hand:
        name, precision, steps = arguments.by_hand
        by_hand(name, precision, int(steps))
        return
    from orchestrator.launch.ray_host import RayHost

    host, results = RayHost(), {}
    try:
        for name in arguments.networks:
            for precision in ("bf16", "fp32"):
                about = {"name": name, "precision": precision, "steps": STEPS[name]}

                def on_ray(about=about) -> float:
                    return host.submit(ours, about, Resources(WORKERS, 1, 0)).result()

                def on_torchrun(about=about) -> float:
                    return torchrun(*about.values())

                sides = {"DeepSpeed stage 0 on Ray": on_ray, "torchrun + DDP": on_torchrun}
                results[f"{name} {precision}"] = alternate(sides, arguments.rounds)
    finally:
        host.close()
    document = {"benchmark": "distributed_step", "machine": machine(), "results": results}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
