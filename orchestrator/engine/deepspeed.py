"""DeepSpeed with ZeRO stages 0 to 3 (Rajbhandari et al., 2020), on GPUs and on CPUs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from orchestrator.config.engines import DeepSpeedEngineConfig
from orchestrator.config.optimizers import OptimizerPart
from orchestrator.config.training import TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.deepspeed_layout import (
    bare_state,
    store_channels_last,
)
from orchestrator.engine.deepspeed_setup import (
    Membership,
    build_deepspeed_optimizer,
    deepspeed_config,
    import_deepspeed,
    silenced,
)
from orchestrator.engine.loss_scale import scale_in_zero, start_momentum
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
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.host import Worker
from orchestrator.models.layers.penalties import penalised
from orchestrator.tasks.base import StepOutput, Task

TAG = "state"
PARTITIONED = 3
"""The ZeRO stage from which a rank holds only its part of the parameters."""


class DeepSpeedEngine:
    """DeepSpeed over the worker's group, or over a group of one that it makes itself.

    Weights and optimizer state are fp32; lower precisions are autocast, so that every stage
    computes what the plain engine computes. Under stage 3 a forward pass is a collective: every
    rank has to call `evaluate_step` equally often.

    Args:
        config: the engine's section.
        model: the bare module; it is moved to the worker's device.
        optimizer: the optimizer's section.
        train: with precision and memory format resolved (no `auto`).
        seed: the experiment's.
        worker: this rank.

    Raises:
        ConfigError: if the optimizer can't be sharded.
        ResourceError: if this process has used DeepSpeed on another kind of device before.
    """

    def __init__(
        self,
        config: DeepSpeedEngineConfig,
        *,
        model: nn.Module,
        optimizer: OptimizerPart,
        train: TrainConfig,
        seed: int,
        worker: Worker,
    ) -> None:
        _check(config, optimizer)
        self._train, self._seed, self._worker = train, seed, worker
        self._stage = config.zero_stage
        self._channels_last = train.memory_format == "channels_last"
        self._deepspeed = import_deepspeed(worker.device)
        self._membership = Membership(worker.device)
        # The initial broadcast refuses a channels-last parameter, so every layout starts here.
        self.model = set_memory_format(model.to(worker.device), torch.contiguous_format)
        zero_flattens = self._channels_last and 0 < self._stage < PARTITIONED
        self._stored = store_channels_last(self.model) if zero_flattens else {}
        self._penalised = penalised(self.model)
        with self._membership.or_leave():
            # First what is refused at once: CPU-Adam takes a minute to compile.
            settings = deepspeed_config(config, train, self.model, worker.device)
            self._optimizer = build_deepspeed_optimizer(config, optimizer, self.model, worker)
            self._engine = self._initialize(settings)
        if self._channels_last and self._stage == 0:
            set_memory_format(self.model, torch.channels_last)
        scale_in_zero(self._engine.optimizer)
        if train.precision == "fp16" and self._stage == 0:
            start_momentum(self._optimizer)

    @property
    def replicated(self) -> bool:
        """See `Engine.replicated`."""
        return self._stage < PARTITIONED

    def held_parameters(self) -> list[Tensor]:
        """See `Engine.held_parameters`. Under stage 3, each parameter's shard of this rank."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if self._stage < PARTITIONED:
            return [parameter.detach() for parameter in trainable]
        return [parameter.ds_tensor.detach() for parameter in trainable]  # type: ignore[attr-defined]

    def refresh(self) -> None:
        """See `Engine.refresh`. Small parameters, which stage 3 keeps whole, are gathered anew."""
        kept = self._engine.optimizer.persistent_parameters if self._stage == PARTITIONED else ()
        if kept:
            kept[0].partition(kept, has_been_updated=False)
            kept[0].all_gather(kept)

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """See `Engine.train_step`."""
        set_learning_rate(self._optimizer, lr)
        total = torch.zeros((), device=self._worker.device)
        output: StepOutput | None = None
        alone = self._worker.world_size == 1
        weights = micro_batch_weights(task, batch, self._worker)
        share = [
            (number, micro, weight)
            for number, micro, weight in zip(
                batch.numbers, batch.micro_batches, weights, strict=True
            )
            if len(micro) or not alone
        ]
        for place, (number, micro, weight) in enumerate(share):
            seed_micro_batch(self._seed, batch, number)
            self._engine.set_gradient_accumulation_boundary(place == len(share) - 1)
            output = self._accumulate(task, micro, weight)
            total += output.loss.detach() * weight
        self._engine.step()
        assert output is not None
        return StepOutput(total, output.outputs, output.metrics)

    def evaluate_step(self, task: Task, batch: Batch) -> StepOutput:
        """See `Engine.evaluate_step`."""
        set_training(self.model, False)
        batch = place_inputs(batch, self._worker.device, self._channels_last)
        with torch.no_grad(), autocast(self._worker.device, self._train.precision):
            return task.loss(task.forward(self._engine, batch), batch)

    def synchronise(self) -> None:
        """See `Engine.synchronise`."""
        average_batch_statistics(self.model, self._worker)

    def save(self, folder: Path) -> None:
        """See `Engine.save`. Writes DeepSpeed's own checkpoint, so that its tools read it."""
        scaler = self._engine.torch_autocast_z0_gradscaler
        client = {"scaler": scaler.state_dict() if scaler else None}
        self._engine.save_checkpoint(str(folder), tag=TAG, client_state=client)

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        client = self._load(folder, optimizer=True)
        if client["scaler"] is not None:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(client["scaler"])

    def load_model_state(self, folder: Path) -> None:
        """See `Engine.load_model_state`."""
        self._load(folder, optimizer=False)

    def model_state(self) -> dict[str, Tensor]:
        """See `Engine.model_state`."""
        gathered = self._gathered() if self._stage == PARTITIONED else {}
        if not self._worker.is_main:
            return {}
        state = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        return bare_state(state | gathered, self._stored)

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.destroy()
        self._membership.leave()

    def _initialize(self, settings: dict[str, Any]) -> Any:
        """DeepSpeed's own engine.

        Raises:
            ConfigError: if it refuses a value of the raw block.
        """
        try:
            engine, *_ = self._deepspeed.initialize(
                model=self.model,
                optimizer=self._optimizer,
                config=settings,
                dist_init_required=False,
            )
        except ValidationError as error:
            found = "; ".join(
                f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
            )
            raise ConfigError(f"engine.deepspeed: DeepSpeed refuses it: {found}") from error
        return engine

    def _accumulate(self, task: Task, micro: Batch, weight: float | Tensor) -> StepOutput:
        """Forward and backward of one micro-batch."""
        set_training(self.model, True)
        real = len(micro) > 0
        micro = micro if real else blank(micro)
        micro = place_inputs(micro, self._worker.device, self._channels_last)
        with nullcontext() if real else buffers_kept(self.model):
            with autocast(self._worker.device, self._train.precision):
                outputs = task.forward(self._engine, micro)
                output = task.loss(outputs, micro) if real else empty_loss(outputs)
                output = with_penalty(output, self._penalised)
            self._engine.backward(output.loss * weight)
        return output

    def _gathered(self) -> dict[str, Tensor]:
        """Partitioned parameters by name, whole, module by module. Filled on rank 0."""
        state = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            own = dict(module.named_parameters(recurse=False))
            with self._deepspeed.zero.GatheredParameters(list(own.values())):
                if self._worker.is_main:
                    for name, parameter in own.items():
                        key = f"{path}.{name}" if path else name
                        state[key] = parameter.detach().cpu().clone()
        return state

    def _load(self, folder: Path, *, optimizer: bool) -> dict[str, object]:
        """Restores a checkpoint and returns what `save` put beside it.

        Raises:
            CheckpointError: if there is none, or DeepSpeed can't read it.
        """
        if not (folder / TAG).is_dir():
            raise CheckpointError(f"{folder} holds no DeepSpeed checkpoint")
        try:
            with silenced():
                _, client = self._engine.load_checkpoint(
                    str(folder), tag=TAG, load_optimizer_states=optimizer
                )
        except Exception as error:
            raise CheckpointError(f"DeepSpeed can't read {folder}: {error}") from error
        return dict(client)


def _check(config: DeepSpeedEngineConfig, optimizer: OptimizerPart) -> None:
    """Refuses an optimizer that ZeRO's cutting up of parameters would silently change."""
    if config.zero_stage and optimizer.whole_tensors:
        raise ConfigError(
            f"optimizer.type={optimizer.type} needs engine.zero_stage=0, but it is "
            f"{config.zero_stage}: {optimizer.whole_tensors}; choose another optimizer, such as "
            "adamw, or stage 0"
        )
