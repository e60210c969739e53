"""The memory plan against what a real step's tensors take, rank by rank.

Real engines train two steps on random batches under PyTorch's own `MemTracker`, which follows the
storage of every tensor; on a GPU `max_memory_allocated` is read instead. The plan knows only the
file and the shapes. Run with ``python -m benchmarks.memory_plan --workers 1`` and ``--workers 2``;
prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.common import machine
from orchestrator.config.base import build
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import config_from_mapping
from orchestrator.data.text.tokenizer import SPECIAL, Tokenizer
from orchestrator.data.types import Batch, DataInfo, GlobalBatch
from orchestrator.host import GroupWorker, SingleWorker, Worker
from orchestrator.parts import build_engine
from orchestrator.plan.machine import Room
from orchestrator.plan.memory_plan import MemoryPlanner
from orchestrator.tasks.base import Outputs, Task

IMAGES: dict[str, Any] = {"data": {"source": {"type": "synthetic"}}}
TEXTS: dict[str, Any] = {
    "data": {"source": {"type": "text_folder", "path": "texts", "length": 64}},
    "task": {"type": "language_model"},
    "evaluate": {"monitor": "val/perplexity", "mode": "min"},
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet18": (IMAGES, {"type": "resnet18"}),
    "efficientnet_small": (IMAGES, {"type": "efficientnet_small"}),
    "vit_tiny_patch16": (IMAGES, {"type": "vit_tiny_patch16"}),
    "gru": (TEXTS, {"type": "gru"}),
    "transformer_decoder": (TEXTS, {"type": "transformer_decoder"}),
}
PRECISIONS = ("fp32", "bf16")
STAGES = (None, 1, 2, 3)
BATCH, STEPS = 16, 2
VOCABULARY = 1000


def experiment(
    name: str, precision: str, stage: int | None, workers: int, micro_batches: int
) -> ExperimentConfig:
    """A file that trains one model; images in channels-last order, as a CPU prefers them."""
    about, model = MODELS[name]
    batch = BATCH * workers * micro_batches
    engine = {"type": "plain"} if stage is None else {"type": "deepspeed", "zero_stage": stage}
    layout = "channels_last" if about is IMAGES else "contiguous"
    train = {"precision": precision, "memory_format": layout}
    return config_from_mapping(
        {
            "name": "plan",
            "model": model,
            "engine": engine,
            "scale": {"workers": workers, "cpus": 1, "gpus": 0},
            "train": {**train, "batch_size": batch, "micro_batch": BATCH},
            **about,
        }
    )


def described(name: str) -> DataInfo:
    """Data of 28 pixels, or texts of 64 tokens."""
    sizes, digests = {"train": 1024, "val": 64}, ("", "")
    if MODELS[name][0] is IMAGES:
        labels = tuple(map(str, range(10)))
        return DataInfo((1, 28, 28), labels, (0.0,), (1.0,), sizes, *digests)
    words = tuple(f"w{n}" for n in range(VOCABULARY - len(SPECIAL)))
    tokenizer = Tokenizer("word", False, (*SPECIAL, *words))
    return DataInfo((64,), (), (), (), sizes, *digests, tokenizer=tokenizer)


class Described:
    """As much of a loader as an engine's builder looks at."""

    steps_per_epoch = STEPS

    def __init__(self, info: DataInfo) -> None:
        self.info = info


def share(info: DataInfo, worker: Worker, micro_batches: int) -> GlobalBatch:
    """This rank's random micro-batches."""
    numbers = range(worker.rank * micro_batches, (worker.rank + 1) * micro_batches)
    made = []
    for _ in numbers:
        if info.vocabulary is None:
            inputs = {"image": torch.randn(BATCH, *info.shape)}
            label = torch.zeros(BATCH, dtype=torch.long)
        else:
            inputs = {"tokens": torch.ones(BATCH, *info.shape, dtype=torch.long)}
            label = torch.ones(BATCH, *info.shape, dtype=torch.long)
        made.append(Batch(torch.arange(BATCH), inputs, {"label": label}).to(worker.device))
    samples = BATCH * micro_batches * worker.world_size
    return GlobalBatch(0, 0, samples, tuple(made), tuple(numbers))


def measured(config: ExperimentConfig, info: DataInfo, worker: Worker, micro_batches: int) -> int:
    """The most bytes of tensors that this rank held at once."""
    task: Task = build("task", config.task)
    if worker.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(worker.device)
        _steps(config, task, info, worker, share(info, worker, micro_batches))
        return torch.cuda.max_memory_allocated(worker.device)
    tracker = MemTracker()
    forward = task.forward

    def counted(model: nn.Module, batch: Batch) -> Outputs:
        tracker.reset_mod_stats()  # its sums by module are of one call
        return forward(model, batch)

    task.forward = counted  # type: ignore[method-assign]
    with tracker:
        _steps(config, task, info, worker, share(info, worker, micro_batches))
    # Tensors on the meta device have shapes, but no memory.
    peak = tracker.get_tracker_snapshot("peak")
    return int(peak[torch.device("cpu")]["Total"])


def _steps(
    config: ExperimentConfig, task: Task, info: DataInfo, worker: Worker, batch: GlobalBatch
) -> None:
    loader: Any = Described(info)
    engine = build_engine(config, task=task, loader=loader, worker=worker)
    for _ in range(STEPS):
        engine.train_step(task, batch, 1e-3)
    engine.close()


def planned(config: ExperimentConfig, info: DataInfo, stage: int | None) -> int:
    """The same from the file alone."""
    task: Task = build("task", config.task)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    room = Room(2**40, 1, "not asked")
    planner = MemoryPlanner(config, task=task, info=info, device=device, room=room)
    return planner.footprint(stage, planner.profile(planner.micro_batch)).peak


def cases(names: list[str]) -> Iterator[tuple[str, str, int | None, int]]:
    """Model, precision, ZeRO stage, micro-batches of a rank."""
    for name in names:
        for precision in PRECISIONS:
            for stage in STAGES:
                yield name, precision, stage, 1
    # Gradients that are accumulated lie beside the next micro-batch's activations.
    for stage in STAGES:
        yield names[0], "fp32", stage, 2


def rank(number: int, workers: int, names: list[str], folder: str) -> None:
    """Measures every case on one rank; rank 0 writes the results."""
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    device = torch.device(f"cuda:{number}" if gpu else "cpu")
    worker: Worker = SingleWorker(device)
    if workers > 1:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(workers)}
        store = dist.FileStore(f"{folder}/store", workers)
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=workers)
        worker = GroupWorker(device)
    results = []
    for name, precision, stage, micro_batches in cases(names):
        config, info = experiment(name, precision, stage, workers, micro_batches), described(name)
        real = measured(config, info, worker, micro_batches)
        gc.collect()
        most = max(worker.gather(real) or [0])
        if worker.is_main:
            plan = planned(config, info, stage)
            results.append(
                {
                    "model": name,
                    "precision": precision,
                    "engine": "plain" if stage is None else f"ZeRO {stage}",
                    "workers": workers,
                    "micro-batches": micro_batches,
                    "measured MiB": round(most / 2**20, 2),
                    "planned MiB": round(plan / 2**20, 2),
                    "error %": round(100 * (plan / most - 1), 2),
                }
            )
        worker.barrier()
    if worker.is_main:
        Path(folder, "results.json").write_text(json.dumps(results))
    if workers > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (arguments.workers, arguments.models, folder), nprocs=arguments.workers)
        results = json.loads(Path(folder, "results.json").read_text())
    errors = [abs(one["error %"]) for one in results]
    worst = max(results, key=lambda one: abs(one["error %"]))
    document = {
        "benchmark": "memory_plan",
        "machine": machine(),
        "cases": len(results),
        "median error %": round(statistics.median(errors), 2),
        "largest error %": worst,
        "results": results,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
