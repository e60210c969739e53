"""What an engine is put through: each case trains for real and returns what there is to check.

The cases of one subject run in its worker processes; `engine_contract` judges what they return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.config.base import Part, build
from orchestrator.config.optimizers import AdamW, OptimizerPart, Sgd
from orchestrator.config.training import ClassifyTask, TrainConfig
from orchestrator.data.plan import micro_batches, share
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.base import Engine
from orchestrator.engine.shared import autocast
from orchestrator.host import Worker
from orchestrator.tasks.classify import Classify

CLASSES, SIDE, LR, CLIP = 5, 8, 0.1, 0.05
SIZES = (16, 16, 10, 3, 16)
"""Samples of each global batch: even, uneven, and fewer than micro-batches (one is empty)."""


@dataclass(frozen=True)
class Setting:
    """How a run computes."""

    precision: str
    memory_format: str

    @property
    def train(self) -> dict[str, Any]:
        return {"precision": self.precision, "memory_format": self.memory_format}


class Net(nn.Module):
    """Convolutions, BatchNorm, dropout and a head: what engines treat differently."""

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.second = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.drop(self.norm(self.first(x_NCHW)).relu())
        x_NCHW = self.second(x_NCHW).relu()
        return self.head(x_NCHW.mean((2, 3)))


def batches(
    worker: Worker, *, count: int = 4, sizes: tuple[int, ...] = SIZES
) -> Iterator[GlobalBatch]:
    """This rank's share of a fixed sequence of global batches, `count` micro-batches each."""
    random = torch.Generator().manual_seed(7)
    for index, size in enumerate(sizes):
        image = torch.randn(size, 3, SIDE, SIDE, generator=random)
        label = torch.randint(CLASSES, (size,), generator=random)
        cuts = [torch.from_numpy(ids) for ids in micro_batches(np.arange(size), count)]
        mine = share(count, worker.rank, worker.world_size)
        micro = tuple(
            Batch(cuts[n], {"image": image[cuts[n]]}, {"label": label[cuts[n]]}) for n in mine
        )
        yield GlobalBatch(0, index, size, micro, tuple(mine))


@dataclass
class Lab:
    """Builds the subject's engines, one after another."""

    config: Part
    setting: Setting
    worker: Worker
    folder: Path
    task: Classify = field(default_factory=lambda: Classify(ClassifyTask()))

    def engine(
        self,
        model: nn.Module | None = None,
        optimizer: OptimizerPart | None = None,
        **train: Any,
    ) -> Engine:
        settings = TrainConfig(**self.setting.train, **train)
        engine: Engine = build(
            "engine",
            self.config,
            model=model or Net(),
            optimizer=optimizer or Sgd(lr=LR),
            train=settings,
            seed=3,
            worker=self.worker,
        )
        return engine

    def train(self, engine: Engine, batches: list[GlobalBatch], lr: float = LR) -> list[Any]:
        """Each step's loss and how many samples of it this rank has seen."""
        steps = []
        for batch in batches:
            loss = engine.train_step(self.task, batch, lr).loss
            steps.append((loss.item(), sum(map(len, batch.micro_batches))))
        return steps

    def new_folder(self, name: str) -> Path:
        folder = self.folder / name
        if self.worker.is_main:
            folder.mkdir(parents=True)
        self.worker.barrier()
        return folder


def parity(lab: Lab) -> dict[str, Any]:
    """Losses and weights of a run with dropout and BatchNorm over uneven batches."""
    engine = lab.engine(optimizer=Sgd(lr=LR, momentum=0.9))
    steps = lab.train(engine, list(batches(lab.worker)))
    state = copied(engine.model_state())
    engine.close()
    return {"steps": steps, "state": state}


def resumption(lab: Lab) -> dict[str, Any]:
    """The same five steps straight, resumed in the same engine, and resumed in a fresh one."""
    data, folder = list(batches(lab.worker)), lab.new_folder("resumption")
    engine = lab.engine(optimizer=AdamW(), clip_norm=CLIP)
    lab.train(engine, data[:3])
    engine.synchronise()  # Ranks that differ in nothing are what `save` is given.
    saved = copied(engine.model_state())
    engine.save(folder)
    straight = lab.train(engine, data[3:]), copied(engine.model_state())
    engine.load(folder)
    warm = lab.train(engine, data[3:]), copied(engine.model_state())
    engine.load_model_state(folder)
    only_model = copied(engine.model_state())
    engine.close()
    engine = lab.engine(Net(dropout=0.2), optimizer=AdamW(), clip_norm=CLIP)
    engine.load(folder)
    fresh = lab.train(engine, data[3:]), copied(engine.model_state())
    engine.close()
    return {
        "straight": straight,
        "warm": warm,
        "fresh": fresh,
        "saved": saved,
        "only_model": only_model,
    }


def clipping(lab: Lab) -> dict[str, Any]:
    """The norm of one SGD step of rate 1 with and without clipping: that of its gradient."""
    norms = {}
    for name, clip in (("free", None), ("clipped", CLIP)):
        engine = lab.engine(clip_norm=clip)
        before = copied(engine.model_state())
        lab.train(engine, list(batches(lab.worker, sizes=(16,))), lr=1.0)
        norms[name] = distance(before, engine.model_state(), Net())
        engine.close()
    return norms


def freezing(lab: Lab) -> dict[str, Any]:
    """Which weights a step changes when the first convolution is frozen."""
    model = Net()
    model.first.requires_grad_(False)
    engine = lab.engine(model)
    before = copied(engine.model_state())
    lab.train(engine, list(batches(lab.worker, sizes=(16, 16))))
    after = engine.model_state()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    engine.close()
    return {"changed": changed}


def statistics(lab: Lab) -> dict[str, Any]:
    """BatchNorm's running mean on this rank before and after `synchronise`."""
    engine = lab.engine()
    lab.train(engine, list(batches(lab.worker, sizes=(16, 16))))
    running = engine.model.get_buffer("norm.running_mean")
    own = running.clone()
    engine.synchronise()
    averaged, exported = running.clone(), engine.model_state().get("norm.running_mean")
    engine.close()
    return {"own": own, "averaged": averaged, "exported": exported}


def evaluation(lab: Lab) -> dict[str, Any]:
    """Outputs of the engine, of a bare model with its exported state, and of an empty batch."""
    engine = lab.engine()
    lab.train(engine, list(batches(lab.worker, sizes=(16,))))
    batch = next(batches(lab.worker)).micro_batches[0]
    empty = Batch(batch.ids[:0], {"image": batch.inputs["image"][:0]}, {"label": batch.ids[:0]})
    engine.synchronise()
    first = engine.evaluate_step(lab.task, batch)
    none = engine.evaluate_step(lab.task, empty)
    again = engine.evaluate_step(lab.task, batch)
    state = copied(engine.model_state())
    engine.close()
    bare = None
    if lab.worker.is_main:
        model = Net().eval()
        model.load_state_dict(state)
        with torch.no_grad(), autocast(lab.worker.device, lab.setting.precision):
            bare = model(batch.inputs["image"])
    return {
        "first": first.outputs,
        "again": again.outputs,
        "bare": bare,
        "empty": tuple(none.outputs.shape),
        "names": list(state),
        "dtypes": {tensor.dtype for tensor in state.values()},
    }


def accumulation(lab: Lab) -> dict[str, Any]:
    """Weights after steps cut into few and into many micro-batches, without BatchNorm."""
    states = {}
    for count in (lab.worker.world_size, 6):
        engine = lab.engine(Net(dropout=0, norm=False), clip_norm=CLIP)
        lab.train(engine, list(batches(lab.worker, count=count, sizes=(16, 7))))
        states["few" if count < 6 else "many"] = copied(engine.model_state())
        engine.close()
    return states


def rates(lab: Lab) -> dict[str, Any]:
    """How far one SGD step goes at several learning rates."""
    moved = {}
    for lr in (0.0, 0.1, 0.2):
        engine = lab.engine(Net(dropout=0, norm=False))
        before = copied(engine.model_state())
        lab.train(engine, list(batches(lab.worker, sizes=(16,))), lr=lr)
        moved[lr] = distance(before, engine.model_state(), Net(norm=False))
        engine.close()
    return moved


CASES: dict[str, Callable[[Lab], dict[str, Any]]] = {
    case.__name__: case
    for case in (
        parity,
        resumption,
        clipping,
        freezing,
        statistics,
        evaluation,
        accumulation,
        rates,
    )
}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later steps don't change."""
    return copy.deepcopy(state)


def distance(before: dict[str, Tensor], after: dict[str, Tensor], model: nn.Module) -> float | None:
    """The L2 norm of the change of all parameters; None on ranks that hold no state."""
    if not before:
        return None
    names = [name for name, _ in model.named_parameters()]
    return float(sum((after[n] - before[n]).double().square().sum() for n in names)) ** 0.5
