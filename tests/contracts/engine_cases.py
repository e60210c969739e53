"""What an engine is put through: each case trains for real and returns what there is to check.

The cases of one subject run in its worker processes; `engine_contract` judges what they return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.base import Part, build
from orchestrator.config.optimizers import AdamW, OptimizerPart, Sgd
from orchestrator.config.training import (
    ClassifyTask,
    EmaConfig,
    LanguageModelTask,
    TrainConfig,
)
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.averaging import AveragedEngine
from orchestrator.engine.base import Engine
from orchestrator.engine.phases import PhasedEngine
from orchestrator.engine.shared import autocast
from orchestrator.errors import ConfigError
from orchestrator.host import Worker
from orchestrator.models.registry import create
from orchestrator.networks import freeze_until
from orchestrator.tasks.base import Task
from orchestrator.tasks.classify import Classify
from orchestrator.tasks.language_model import LanguageModel
from tests.contracts.nets import (
    CLASSES,
    CLIP,
    LR,
    SIDE,
    AuxiliaryNet,
    Net,
    RidgeNet,
    TokenNet,
    batches,
    texts,
)


@dataclass(frozen=True)
class Setting:
    """How a run computes."""

    precision: str
    memory_format: str

    @property
    def train(self) -> dict[str, Any]:
        return {"precision": self.precision, "memory_format": self.memory_format}


@dataclass
class Lab:
    """Builds the subject's engines, one after another; `reader` is what data are shared by."""

    config: Part
    setting: Setting
    worker: Worker
    reader: Worker
    folder: Path
    task: Task = field(default_factory=lambda: Classify(ClassifyTask()))

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
        """Each step's loss on this rank."""
        return [engine.train_step(self.task, batch, lr).loss.item() for batch in batches]

    def new_folder(self, name: str) -> Path:
        folder = self.folder / name
        if self.worker.is_main:
            folder.mkdir(parents=True)
        self.worker.barrier()
        return folder


def parity(lab: Lab) -> dict[str, Any]:
    """Losses and weights of a run with dropout and BatchNorm over uneven batches.

    It is evaluated on the way, which must leave no trace.
    """
    engine, data = lab.engine(optimizer=Sgd(lr=LR, momentum=0.9)), list(batches(lab.reader))
    steps = lab.train(engine, data[:2])
    engine.evaluate_step(lab.task, data[0].micro_batches[0])
    steps += lab.train(engine, data[2:])
    state = copied(engine.model_state())
    engine.close()
    return {"steps": steps, "state": state}


def resumption(lab: Lab) -> dict[str, Any]:
    """The same five steps straight, resumed in the same engine, and resumed in a fresh one."""
    data, folder = list(batches(lab.reader)), lab.new_folder("resumption")
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
        lab.train(engine, list(batches(lab.reader, sizes=(16,))), lr=1.0)
        norms[name] = distance(before, engine.model_state(), Net())
        engine.close()
    return norms


def freezing(lab: Lab) -> dict[str, Any]:
    """Which weights a step changes when the first convolution is frozen."""
    model = Net()
    model.first.requires_grad_(False)
    engine = lab.engine(model)
    before = copied(engine.model_state())
    lab.train(engine, list(batches(lab.reader, sizes=(16, 16))))
    after = engine.model_state()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    engine.close()
    return {"changed": changed}


def statistics(lab: Lab) -> dict[str, Any]:
    """BatchNorm's running mean on this rank before and after `synchronise`."""
    engine = lab.engine()
    lab.train(engine, list(batches(lab.reader, sizes=(16, 16))))
    running = engine.model.get_buffer("norm.running_mean")
    if running.is_meta:  # another stage of the pipeline has it
        running = torch.zeros(0)
    own = running.clone()
    engine.synchronise()
    averaged, exported = running.clone(), engine.model_state().get("norm.running_mean")
    engine.close()
    return {"own": own, "averaged": averaged, "exported": exported}


def evaluation(lab: Lab) -> dict[str, Any]:
    """Outputs of the engine, of a bare model with its exported state, and of an empty batch."""
    engine = lab.engine()
    lab.train(engine, list(batches(lab.reader, sizes=(16,))))
    batch = next(batches(lab.reader)).micro_batches[0]
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
    for count in (lab.reader.world_size, 6):
        engine = lab.engine(Net(dropout=0, norm=False), clip_norm=CLIP)
        lab.train(engine, list(batches(lab.reader, count=count, sizes=(16, 7))))
        states["few" if count < 6 else "many"] = copied(engine.model_state())
        engine.close()
    return states


def tokens(lab: Lab) -> dict[str, Any]:
    """Losses and weights of a language model on padded texts, cut into few and many parts."""
    lab = replace(lab, task=LanguageModel(LanguageModelTask()))
    found = {}
    for count in (lab.reader.world_size, 4, 6):
        engine = lab.engine(TokenNet(), Sgd(lr=LR, momentum=0))
        losses = lab.train(engine, list(texts(lab.reader, count=count)))
        found[f"cut in {count}"] = losses, copied(engine.model_state())
        engine.close()
    return found


def penalties(lab: Lab) -> dict[str, Any]:
    """Losses, penalties and weights of a model with one, cut into few and many parts.

    Or the message of an engine that takes no such model.
    """
    found: dict[str, Any] = {}
    for count in (lab.reader.world_size, 6):
        try:
            engine = lab.engine(RidgeNet(), Sgd(lr=LR, momentum=0))
        except ConfigError as error:
            return {"refused": str(error)}
        outputs = [
            engine.train_step(lab.task, batch, LR)
            for batch in batches(lab.reader, count=count, sizes=(16, 7))
        ]
        losses = [(output.loss.item(), output.metrics["penalty"].item()) for output in outputs]
        found[f"cut in {count}"] = losses, copied(engine.model_state())
        engine.close()
    return found


def auxiliaries(lab: Lab) -> dict[str, Any]:
    """Losses and weights of a model with an auxiliary head where some micro-batch is empty.

    And how many micro-batches this rank's BatchNorm saw.
    """
    engine = lab.engine(AuxiliaryNet(), Sgd(lr=LR, momentum=0))
    steps = lab.train(engine, list(batches(lab.reader, sizes=(3, 16))))
    seen = engine.model.get_buffer("norm.num_batches_tracked")
    found = {"steps": steps, "seen": 0 if seen.is_meta else int(seen)}
    found["state"] = copied(engine.model_state())
    engine.close()
    return found


def rates(lab: Lab) -> dict[str, Any]:
    """How far one SGD step goes at several learning rates."""
    moved = {}
    for lr in (0.0, 0.1, 0.2):
        engine = lab.engine(Net(dropout=0, norm=False))
        before = copied(engine.model_state())
        lab.train(engine, list(batches(lab.reader, sizes=(16,))), lr=lr)
        moved[lr] = distance(before, engine.model_state(), Net(norm=False))
        engine.close()
    return moved


def averaging(lab: Lab) -> dict[str, Any]:
    """Weights after each step, the average at the end, and whether looking at it does harm."""
    data, folder = list(batches(lab.reader)), lab.new_folder("averaging")
    inners = []

    def averaged() -> AveragedEngine:
        inners.append(lab.engine(optimizer=Sgd(lr=LR, momentum=0.9)))
        return AveragedEngine(EmaConfig(decay=0.6), inners[-1], lab.worker)

    engine = averaged()
    path = [copied(inners[0].model_state())]
    steps = []
    for number, batch in enumerate(data):
        steps.append(engine.train_step(lab.task, batch, LR).loss.item())
        path.append(copied(inners[0].model_state()))
        if number == 2:
            engine.synchronise()
            seen = engine.evaluate_step(lab.task, batch.micro_batches[0]).outputs
            middle = copied(engine.model_state())
            engine.save(folder)
    engine.synchronise()
    average = copied(engine.model_state())
    engine.close()
    engine = averaged()
    engine.load(folder)
    again = lab.train(engine, data[3:])
    engine.synchronise()
    resumed = copied(engine.model_state())
    engine.load_model_state(folder)
    restored = copied(engine.model_state())
    engine.close()
    return {
        "path": path,
        "steps": steps,
        "seen": seen,
        "middle": middle,
        "average": average,
        "again": again,
        "resumed": resumed,
        "restored": restored,
    }


def unfreezing(lab: Lab) -> dict[str, Any]:
    """Two frozen steps and three free ones, straight and resumed from either phase."""
    data, early, late = list(batches(lab.reader)), *map(lab.new_folder, ("early", "late"))

    def build_phase(phase: int, state: dict[str, Tensor] | None) -> Engine:
        model = Net()
        if state is not None:
            model.load_state_dict(state)
        freeze_until(model, [["first.*"]], phase)
        return lab.engine(model, optimizer=AdamW())

    def fresh() -> PhasedEngine:
        return PhasedEngine([2], build_phase, lab.worker)

    engine = fresh()
    begun = copied(engine.model_state())
    losses = lab.train(engine, data[:2])
    engine.synchronise()
    frozen = copied(engine.model_state())
    engine.save(early)
    losses += lab.train(engine, data[2:4])
    engine.synchronise()
    engine.save(late)
    losses += lab.train(engine, data[4:])
    free = copied(engine.model_state())
    engine.load(early)
    again = lab.train(engine, data[2:4])
    engine.synchronise()
    again += lab.train(engine, data[4:])
    from_early = again, copied(engine.model_state())
    engine.close()
    engine = fresh()
    engine.load(late)
    from_late = lab.train(engine, data[4:]), copied(engine.model_state())
    engine.close()
    return {
        "begun": begun,
        "frozen": frozen,
        "free": free,
        "losses": losses,
        "from_early": from_early,
        "from_late": from_late,
    }


def recomputation(lab: Lab) -> dict[str, Any]:
    """Losses of a model of stages that keeps its activations, and of one that recomputes them."""
    losses = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        model = create("resnet18", num_classes=CLASSES, in_channels=3, image_size=SIDE, width=0.125)
        model.set_checkpointing(recompute)
        engine = lab.engine(model, optimizer=Sgd(lr=LR, momentum=0.9))
        losses[recompute] = lab.train(engine, list(batches(lab.reader, sizes=(16, 10))))
        engine.close()
    return losses


def scales(lab: Lab) -> dict[str, Any]:
    """How far one SGD step moves parameters of a group with half the rate, and without it."""
    moved = {}
    for name, groups in (("same", []), ("own", [{"parameters": ["head.*"], "lr_scale": 0.5}])):
        section = Sgd.model_validate({"lr": LR, "momentum": 0.0, "groups": groups})
        engine = lab.engine(Net(dropout=0, norm=False), optimizer=section)
        before = copied(engine.model_state())
        lab.train(engine, list(batches(lab.reader, sizes=(16,))))
        after = engine.model_state()
        moved[name] = {key: after[key] - before[key] for key in after}
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
        tokens,
        penalties,
        auxiliaries,
        averaging,
        unfreezing,
        recomputation,
        scales,
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
