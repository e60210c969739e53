"""Unfreezing by phases, around any engine (Howard and Ruder, 2018, section 3.3)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.base import Engine
from orchestrator.files import read_json, write_json
from orchestrator.host import Worker
from orchestrator.tasks.base import StepOutput, Task

FILE = "phase.json"
Build = Callable[[int, dict[str, Tensor] | None], Engine]
"""(phase, weights or None for fresh ones) to the engine that trains it."""


class PhasedEngine:
    """Trains one phase after another, each with an engine and an optimizer of its own.

    What an engine may update is fixed when it is made (DDP and ZeRO lay out their buffers then),
    so a phase that lets more parameters learn starts a new one from the weights reached. The
    optimizer's moments start at zero in each phase.

    Args:
        starts: steps after which phase 1, 2, … begins, ascending; phase 0 begins at step 0.
        build: makes a phase's engine. Called by every rank.
        worker: this rank.
    """

    def __init__(self, starts: Sequence[int], build: Build, worker: Worker) -> None:
        self._starts, self._build, self._worker = starts, build, worker
        self._steps = 0
        self._phase = bisect_right(starts, 0)
        self._engine = build(self._phase, None)

    @property
    def model(self) -> nn.Module:
        """See `Engine.model`."""
        return self._engine.model

    @property
    def replicated(self) -> bool:
        """See `Engine.replicated`."""
        return self._engine.replicated

    def held_parameters(self) -> list[Tensor]:
        """See `Engine.held_parameters`."""
        return self._engine.held_parameters()

    def refresh(self) -> None:
        """See `Engine.refresh`."""
        self._engine.refresh()

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """See `Engine.train_step`. The first step of a phase makes its engine."""
        self._enter(bisect_right(self._starts, self._steps))
        self._steps += 1
        return self._engine.train_step(task, batch, lr)

    def evaluate_step(self, task: Task, batch: Batch) -> StepOutput:
        """See `Engine.evaluate_step`."""
        return self._engine.evaluate_step(task, batch)

    def synchronise(self) -> None:
        """See `Engine.synchronise`."""
        self._engine.synchronise()

    def save(self, folder: Path) -> None:
        """See `Engine.save`."""
        self._engine.save(folder)
        if self._worker.is_main:
            write_json(folder / FILE, {"phase": self._phase, "steps": self._steps})

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        self._steps = self._enter_saved(folder)
        self._engine.load(folder)

    def load_model_state(self, folder: Path) -> None:
        """See `Engine.load_model_state`."""
        self._enter_saved(folder)
        self._engine.load_model_state(folder)

    def model_state(self) -> dict[str, Tensor]:
        """See `Engine.model_state`."""
        return self._engine.model_state()

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()

    def _enter(self, phase: int) -> None:
        if phase == self._phase:
            return
        self._engine.synchronise()
        state = self._worker.broadcast(self._engine.model_state())
        self._engine.close()
        self._engine, self._phase = self._build(phase, state), phase

    def _enter_saved(self, folder: Path) -> int:
        """Makes the engine that a checkpoint was saved from; returns its steps."""
        kept = self._worker.broadcast(read_json(folder / FILE) if self._worker.is_main else None)
        assert kept is not None
        self._enter(kept["phase"])
        return int(kept["steps"])
