"""A training step through our loop and plain engine against a hand-written PyTorch loop.

Same network, batches, precision, memory format and optimizer on both sides, alternating in one
process. Run with ``python -m benchmarks.train_step [--networks …]``; prints JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import alternate, machine
from orchestrator.config.base import build
from orchestrator.config.duration import Interval
from orchestrator.config.engines import PlainEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.types import Batch, DataInfo, GlobalBatch
from orchestrator.engine.plain import PlainEngine
from orchestrator.engine.shared import set_memory_format
from orchestrator.hooks import Every, KeepBest, Log
from orchestrator.host import SingleWorker
from orchestrator.loop import Evaluation, RunState, Signal, fit
from orchestrator.models.registry import create
from orchestrator.tracking.memory import DictTracker

BATCH, PIXELS = 128, 28
INFO = DataInfo((1, PIXELS, PIXELS), tuple("0123456789"), (0.5,), (0.5,), {}, "", "")


class FixedLoader:
    """Hands out the same prepared batches, so that only the step itself is timed."""

    info = INFO

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.steps_per_epoch = steps
        self.batches = []
        for index in range(steps):
            image = torch.randn(BATCH, 1, PIXELS, PIXELS, generator=generator)
            label = torch.randint(0, 10, (BATCH,), generator=generator)
            batch = Batch(torch.arange(BATCH), {"image": image}, {"label": label})
            self.batches.append(GlobalBatch(0, index, BATCH, (batch,), (0,)))

    def train(self, epoch: int, start: int = 0):
        yield from self.batches[start:]

    def evaluate(self, split: str, batch_size: int = 512):
        return iter(())

    def close(self) -> None:
        return None


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(name, num_classes=10, in_channels=1, image_size=PIXELS)


def ours(model: nn.Module, loader: FixedLoader, precision: str) -> Callable[[], float]:
    """Seconds of one pass through our loop, hooks included."""
    train = TrainConfig.model_validate(
        {"precision": precision, "memory_format": "channels_last", "micro_batch": BATCH}
    )
    worker = SingleWorker()
    engine = PlainEngine(
        PlainEngineConfig(), model=model, optimizer=AdamW(), train=train, seed=0, worker=worker
    )
    task = build("task", ClassifyTask())

    def one_pass() -> float:
        state = RunState(
            engine=engine,
            task=task,
            loader=loader,
            worker=worker,
            schedule=lambda step: 1.0,
            lr=1e-3,
            total_steps=loader.steps_per_epoch,
            evaluate=lambda: Evaluation("val", {"val/accuracy": 0.0}),
            save=lambda state: None,
            hooks=[
                Log(DictTracker(), 50),
                Every(Signal.CHECKPOINT, Interval(10**9)),
                KeepBest("val/accuracy", "max"),
            ],
        )
        began = time.perf_counter()
        for _ in fit(state):
            pass
        return time.perf_counter() - began

    return one_pass


def by_hand(model: nn.Module, loader: FixedLoader, precision: str) -> Callable[[], float]:
    """Seconds of one pass through a loop as one would write it for this network alone."""
    set_memory_format(model.train(), torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def one_pass() -> float:
        began = time.perf_counter()
        for batch in loader.batches:
            x = batch.micro_batches[0].inputs["image"].contiguous(memory_format=torch.channels_last)
            with autocast:
                logits = model(x)
                loss = F.cross_entropy(logits.float(), batch.micro_batches[0].targets["label"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return one_pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["efficientnet_small", "resnet18"])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    results = {}
    for name in arguments.networks:
        for precision in ("bf16", "fp32"):
            steps = 3 if name == "resnet18" else 40
            loader, model = FixedLoader(steps), network(name)
            sides = {
                "ours": ours(copy.deepcopy(model), loader, precision),
                "by hand": by_hand(copy.deepcopy(model), loader, precision),
            }
            results[f"{name} {precision}"] = alternate(sides, arguments.rounds)
    print(
        json.dumps({"benchmark": "train_step", "machine": machine(), "results": results}, indent=2)
    )


if __name__ == "__main__":
    main()
