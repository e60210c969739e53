"""The one training loop: `fit` yields after every optimizer step, whoever drives it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from orchestrator.data.types import GlobalBatch, Loader
from orchestrator.engine.base import Engine
from orchestrator.host import Worker
from orchestrator.optim.schedules import Schedule
from orchestrator.tasks.base import Task

AGREE_EVERY = 10
"""Steps between two agreements of the ranks on signals that only one of them may have seen."""


class Signal(enum.IntFlag):
    """What a hook asks the loop for."""

    NONE = 0
    EVALUATE = 1
    CHECKPOINT = 2
    STOP = 4


@dataclass(frozen=True)
class Evaluation:
    """One reading of a split: values by metric name, such as ``val/accuracy``."""

    split: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class StepInfo:
    """What happened in one optimizer step.

    Attributes:
        step: optimizer steps so far, from 1.
        total: optimizer steps of the whole run.
        epoch: epochs so far; 1.5 is half-way through the second.
        loss: this rank's part of the step's loss, whose mean over ranks is the whole, on the
            device; reading it waits for the device.
        samples: samples of this step over all ranks.
        metrics: further scalars of the task, on the device.
        evaluation: set when this step was evaluated.
    """

    step: int
    total: int
    epoch: float
    loss: Tensor
    lr: float
    samples: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    evaluation: Evaluation | None = None


@dataclass
class RunState:
    """What hooks may read and use while a model trains."""

    engine: Engine
    task: Task
    loader: Loader
    worker: Worker
    schedule: Schedule
    lr: float
    total_steps: int
    evaluate: Callable[[], Evaluation]
    save: Callable[[RunState], None]
    hooks: Sequence[Hook]
    step: int = 0
    stop_reason: str = ""
    best: dict[str, Any] | None = None
    """Step, value and metrics of the best evaluation."""
    last: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = 0
    """The step of the last evaluation, whose values are `last`."""

    @property
    def epoch(self) -> float:
        """Epochs so far."""
        return self.step / self.loader.steps_per_epoch

    def memory(self) -> dict[str, Any]:
        """What a resumed run must remember, as JSON."""
        hooks = {type(hook).__name__: hook.memory() for hook in self.hooks}
        kept = {"step": self.step, "best": self.best, "last": self.last, "hooks": hooks}
        return kept | {"stop_reason": self.stop_reason}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Takes over what `memory` gave, but for the stop: one that was interrupted goes on."""
        self.step, self.best, self.last = memory["step"], memory["best"], dict(memory["last"])
        for hook in self.hooks:
            hook.remember(memory["hooks"].get(type(hook).__name__, {}))


class Hook(Protocol):
    """Something that happens every N steps.

    Called after each step, and once more with `info.evaluation` when the step was evaluated.
    """

    scope: Literal["all", "rank"]
    """`all` when every rank gives the same answer; `rank` when one may see what others do not."""

    def __call__(self, info: StepInfo, run: RunState) -> Signal:
        """Answers one step."""
        ...

    def memory(self) -> dict[str, Any]:
        """What a resumed run must remember, as JSON."""
        ...

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Takes over what `memory` gave."""
        ...


def fit(run: RunState) -> Generator[StepInfo, None, None]:
    """Trains from `run.step` to `run.total_steps`, or until a hook stops it.

    A resumed run that was stopped already, as its `stop_reason` says, trains no step.

    Yields:
        One `StepInfo` after each optimizer step, once its hooks have run.
    """
    if run.stop_reason:
        return
    pending = Signal.NONE
    per_epoch = run.loader.steps_per_epoch
    while run.step < run.total_steps:
        epoch, start = divmod(run.step, per_epoch)
        for batch in run.loader.train(epoch, start):
            info = _step(run, batch)
            signal, pending = _ask(run, info, pending)
            if signal & Signal.EVALUATE:
                info = replace(info, evaluation=_evaluate(run))
                again, pending = _ask(run, info, pending)
                signal |= again
            if signal & Signal.CHECKPOINT:
                run.save(run)
            yield info
            if signal & Signal.STOP or run.step >= run.total_steps:
                return


def _step(run: RunState, batch: GlobalBatch) -> StepInfo:
    lr = run.lr * run.schedule(run.step)
    output = run.engine.train_step(run.task, batch, lr)
    run.step += 1
    return StepInfo(
        run.step,
        run.total_steps,
        run.epoch,
        output.loss,
        lr,
        batch.samples,
        output.metrics,
    )


def _evaluate(run: RunState) -> Evaluation:
    run.engine.synchronise()
    evaluation = run.evaluate()
    run.last, run.evaluated_at = dict(evaluation.values), run.step
    return evaluation


def _ask(run: RunState, info: StepInfo, pending: Signal) -> tuple[Signal, Signal]:
    """Merges the hooks' signals; those of single ranks wait until the ranks agree on them."""
    signal = Signal.NONE
    for hook in run.hooks:
        answer = hook(info, run)
        if hook.scope == "all":
            signal |= answer
        else:
            pending |= answer
    if run.worker.world_size == 1:
        return signal | pending, Signal.NONE
    if info.evaluation is None and (
        info.step % AGREE_EVERY == 0 or info.step == run.total_steps or signal
    ):
        return signal | Signal(run.worker.agree(int(pending))), Signal.NONE
    return signal, pending
