"""A step of a pipeline of two processes against the same step in one process, a thread each.

With m micro-batches and p even stages that cost nothing to join, p processes would take
(m + p − 1) / (m p) of one process's time: while the first and the last micro-batch pass through,
stages wait. The efficiency T(one) / (p T(p)) is compared with that ideal, m / (m + p − 1). The cut
is measured first, as a run does; stages are cut whole, so the parts are not even: the longest sets
the pace, the more so the more micro-batches there are, and the benchmark also prints what share of
the ideal is left by that alone. Freed memory is kept on both sides, as in a run. Both sides take
turns in one run. Run with ``python -m benchmarks.pipeline_step [--networks …]``; prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.common import alternate, machine
from benchmarks.train_step import BATCH, FixedLoader, network
from orchestrator.allocator import keep_freed_memory
from orchestrator.config.base import Part, build
from orchestrator.config.engines import PipelineEngineConfig, PlainEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.base import Engine
from orchestrator.engine.pipeline_cut import balanced, stage_seconds
from orchestrator.engine.shared import autocast, place_inputs, set_memory_format
from orchestrator.host import GroupWorker, SingleWorker, Worker

STAGES = 2
STEPS = {"efficientnet_small": 4, "resnet18": 1}


def micro_batches(count: int) -> GlobalBatch:
    """One global batch, cut."""
    (whole,) = FixedLoader(1).batches[0].micro_batches
    cuts = whole.ids.tensor_split(count)
    parts = [
        Batch(ids, {"image": whole.inputs["image"][ids]}, {"label": whole.targets["label"][ids]})
        for ids in cuts
    ]
    return GlobalBatch(0, 0, BATCH, tuple(parts), tuple(range(count)))


def measured_cut(name: str, precision: str, count: int) -> tuple[tuple[int, ...], list[float]]:
    """The cut, and the measured seconds of a micro-batch in each of its parts."""
    model = set_memory_format(network(name).train(), torch.channels_last)
    batch = place_inputs(micro_batches(count).micro_batches[0], torch.device("cpu"), True)
    with autocast(torch.device("cpu"), precision):
        seconds = stage_seconds(model, batch.inputs)
    cut = balanced(seconds, STAGES)
    places = iter(seconds)
    return cut, [sum(itertools.islice(places, count)) for count in cut]


def even_share(parts: list[float], count: int) -> float:
    """The share of the ideal that parts of these seconds could reach if nothing else cost time.

    All but one of the micro-batches pass at the pace of the longest part, and one through all.
    """
    together = (count - 1) * max(parts) + sum(parts)
    return (count + STAGES - 1) * sum(parts) / STAGES / together


def engine_of(config: Part, name: str, precision: str, worker: Worker) -> Engine:
    engine: Engine = build(
        "engine",
        config,
        model=network(name),
        optimizer=AdamW(),
        train=TrainConfig(precision=precision, memory_format="channels_last"),
        seed=0,
        worker=worker,
    )
    return engine


def timed(engine: Engine, steps: int, count: int) -> Callable[[], float]:
    """Seconds of so many steps."""
    task, batch = build("task", ClassifyTask()), micro_batches(count)

    def work() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            engine.train_step(task, batch, 1e-3)
        return time.perf_counter() - began

    return work


def measure(worker: Worker, name: str, precision: str, count: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn; while rank 0 trains alone the others wait."""
    found_cut = measured_cut(name, precision, count) if worker.is_main else None
    cut, parts = worker.broadcast(found_cut)
    config = PipelineEngineConfig(stages=STAGES, cut=cut)
    together = engine_of(config, name, precision, worker)
    run_together = timed(together, STEPS[name], count)
    run_alone: Callable[[], float] = lambda: 0.0  # noqa: E731
    if worker.is_main:
        alone = engine_of(PlainEngineConfig(), name, precision, SingleWorker())
        run_alone = timed(alone, STEPS[name], count)

    def side(work: Callable[[], float]) -> Callable[[], float]:
        def turn() -> float:
            worker.barrier()
            seconds = work()
            worker.barrier()
            return max(seconds, 1e-9)

        return turn

    sides = {f"{STAGES} processes": side(run_together), "one process": side(run_alone)}
    found = alternate(sides, rounds)
    together.close()
    faster = found[f"times faster is {STAGES} processes"]["than one process"]["median"]
    ideal = count / (count + STAGES - 1)
    efficiency = faster / STAGES
    found["cut"] = list(cut)
    found["milliseconds of the parts"] = [round(1e3 * part, 2) for part in parts]
    found["efficiency"] = round(efficiency, 3)
    found["ideal"] = round(ideal, 3)
    found["share of the ideal"] = round(efficiency / ideal, 3)
    found["share that the cut allows"] = round(even_share(parts, count), 3)
    return found


def rank(number: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    store = dist.FileStore(f"{folder}/store", STAGES)
    dist.init_process_group("gloo", store=store, rank=number, world_size=STAGES)
    worker = GroupWorker()
    results = {
        f"{name} {precision} {count} micro-batches": measure(
            worker, name, precision, count, arguments.rounds
        )
        for name in arguments.networks
        for precision in ("bf16", "fp32")
        for count in arguments.micro_batches
    }
    if worker.is_main:
        Path(folder, "results").write_text(json.dumps(results))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank, (folder, arguments), nprocs=STAGES)
        results = json.loads(Path(folder, "results").read_text())
    document = {
        "benchmark": "pipeline_step",
        "machine": machine(),
        "batch": BATCH,
        "stages": STAGES,
        "results": results,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
