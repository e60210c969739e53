"""PyTorch itself; several ranks synchronise gradients through DistributedDataParallel."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.config.engines import PlainEngineConfig
from orchestrator.config.optimizers import OptimizerPart
from orchestrator.config.training import TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.loss_scale import start_momentum
from orchestrator.engine.shared import (
    autocast,
    average_batch_statistics,
    blank,
    buffers_kept,
    empty_loss,
    micro_batch_weights,
    place_inputs,
    seed_micro_batch,
    set_learning_rate,
    set_memory_format,
    set_training,
    with_penalty,
)
from orchestrator.host import Worker
from orchestrator.models.layers.penalties import penalised
from orchestrator.optim.optimizers import build_optimizer
from orchestrator.tasks.base import StepOutput, Task

MODEL_FILE, OPTIMIZER_FILE = "model.pt", "optimizer.pt"


class PlainEngine:
    """One process, or DistributedDataParallel over the worker's group.

    Args:
        config: the engine's section.
        model: the bare module; it is moved to the worker's device and memory format.
        optimizer: the optimizer's section.
        train: with precision and memory format resolved (no `auto`).
        seed: the experiment's.
        worker: this rank.
    """

    def __init__(
        self,
        config: PlainEngineConfig,
        *,
        model: nn.Module,
        optimizer: OptimizerPart,
        train: TrainConfig,
        seed: int,
        worker: Worker,
    ) -> None:
        self._train, self._seed, self._worker = train, seed, worker
        self._channels_last = train.memory_format == "channels_last"
        self.model = model.to(worker.device)
        if self._channels_last:
            set_memory_format(self.model, torch.channels_last)
        self._optimizer = build_optimizer(optimizer, self.model)
        self._penalised = penalised(self.model)
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        self._scaler = torch.amp.GradScaler(worker.device.type, enabled=train.precision == "fp16")
        if train.precision == "fp16":
            start_momentum(self._optimizer)
        self._parallel: nn.Module = self.model
        self._compiled = train.compile is True
        if self._compiled:
            # Random numbers are drawn as without it, so that dropout drops the same.
            self.model.compile(options={"fallback_random": True})
        self._warm = False
        if worker.world_size > 1:
            # BatchNorm statistics stay each rank's own until `synchronise` averages them.
            with warnings.catch_warnings():
                # Its successor is missing in the older releases that we support.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._parallel = DistributedDataParallel(self.model, broadcast_buffers=False)

    @property
    def replicated(self) -> bool:
        """See `Engine.replicated`."""
        return True

    def held_parameters(self) -> list[Tensor]:
        """See `Engine.held_parameters`."""
        return [parameter.detach() for parameter in self._trainable]

    def refresh(self) -> None:
        """See `Engine.refresh`."""

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """See `Engine.train_step`."""
        set_learning_rate(self._optimizer, lr)
        total = torch.zeros((), device=self._worker.device)
        output: StepOutput | None = None
        last = len(batch.micro_batches) - 1
        weights = micro_batch_weights(task, batch, self._worker)
        for place, (number, micro, weight) in enumerate(
            zip(batch.numbers, batch.micro_batches, weights, strict=True)
        ):
            if not len(micro) and self._parallel is self.model:
                continue
            seed_micro_batch(self._seed, batch, number)
            with nullcontext() if place == last else self._no_sync():
                output = self._accumulate(task, micro, weight)
            total += output.loss.detach() * weight
        self._apply()
        assert output is not None
        return StepOutput(total, output.outputs, output.metrics)

    def evaluate_step(self, task: Task, batch: Batch) -> StepOutput:
        """See `Engine.evaluate_step`."""
        set_training(self.model, False)
        batch = place_inputs(batch, self._worker.device, self._channels_last)
        precision = autocast(self._worker.device, self._train.precision)
        with torch.no_grad(), precision, self._stance("force_eager"):
            return task.loss(task.forward(self.model, batch), batch)

    def synchronise(self) -> None:
        """See `Engine.synchronise`."""
        average_batch_statistics(self.model, self._worker)

    def save(self, folder: Path) -> None:
        """See `Engine.save`. Ranks are equal, so rank 0 writes for all."""
        if not self._worker.is_main:
            return
        torch.save(self.model.state_dict(), folder / MODEL_FILE)
        state = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        torch.save(state, folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        self.load_model_state(folder)
        state = self._read(folder / OPTIMIZER_FILE)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def model_state(self) -> dict[str, Tensor]:
        """See `Engine.model_state`."""
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}

    def load_model_state(self, folder: Path) -> None:
        """See `Engine.load_model_state`."""
        self.model.load_state_dict(self._read(folder / MODEL_FILE))

    def close(self) -> None:
        """See `Engine.close`."""
        self._optimizer.zero_grad(set_to_none=True)
        self._parallel = self.model

    def gradients(self, task: Task, batch: GlobalBatch) -> list[Tensor]:
        """The gradients of a global batch, one a trainable parameter; nothing is updated."""
        weights = micro_batch_weights(task, batch, self._worker)
        for number, micro, weight in zip(batch.numbers, batch.micro_batches, weights, strict=True):
            seed_micro_batch(self._seed, batch, number)
            self._accumulate(task, micro, weight)
        found = [
            torch.zeros_like(one) if one.grad is None else one.grad.detach().clone()
            for one in self._trainable
        ]
        self._optimizer.zero_grad(set_to_none=True)
        return found

    def _stance(self, stance: str) -> AbstractContextManager[Any]:
        """How compiled code is used inside; nothing where there is none."""
        return torch.compiler.set_stance(stance) if self._compiled else nullcontext()

    def _accumulate(self, task: Task, micro: Batch, weight: float | Tensor) -> StepOutput:
        """Forward and backward of one micro-batch."""
        # The bare module's mode counts: evaluation sets it without DDP's wrapper knowing.
        set_training(self.model, True)
        real = len(micro) > 0
        micro = micro if real else blank(micro)
        micro = place_inputs(micro, self._worker.device, self._channels_last)
        # Compiled once, for the first shape: a short last batch is not worth a minute.
        stance = self._stance("eager_on_recompile" if self._warm else "default")
        with nullcontext() if real else buffers_kept(self.model):
            with stance, autocast(self._worker.device, self._train.precision):
                outputs = task.forward(self._parallel, micro)
                output = task.loss(outputs, micro) if real else empty_loss(outputs)
                output = with_penalty(output, self._penalised)
            self._scaler.scale(output.loss * weight).backward()  # type: ignore[no-untyped-call]
        self._warm = True
        return output

    def _apply(self) -> None:
        """Clips and updates."""
        if self._train.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._trainable, self._train.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _no_sync(self) -> Any:
        if isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return nullcontext()

    def _read(self, path: Path) -> Any:
        return torch.load(path, map_location=self._worker.device, weights_only=True)
