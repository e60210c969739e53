"""DeepSpeed's pipeline over the stages of a model, and copies of it side by side."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.config.optimizers import OptimizerPart
from orchestrator.config.training import TrainConfig
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.deepspeed_layout import bare_state, store_channels_last
from orchestrator.engine.deepspeed_setup import silenced
from orchestrator.engine.loss_scale import start_momentum
from orchestrator.engine.pipeline_cut import check_stages, check_task, choose_cut, stage_input
from orchestrator.engine.pipeline_setup import Pipeline
from orchestrator.engine.pipeline_share import (
    chunks,
    joined,
    share_names,
    share_output,
    share_scalars,
)
from orchestrator.engine.pipeline_worker import PipelineWorker
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
)
from orchestrator.errors import CheckpointError
from orchestrator.files import read_json, write_json
from orchestrator.host import Worker
from orchestrator.models.stages import State
from orchestrator.optim.optimizers import build_optimizer
from orchestrator.tasks.base import Outputs, StepOutput, Task

TAG, LAYOUT = "state", "pipeline.json"
CHUNKS = 4
"""Parts, for each stage, that an evaluated batch is cut into, so that all stages have work."""


class PipelineEngine:
    """DeepSpeed's pipeline: each rank holds some of the model's stages, and no other parameters.

    Rank r is stage ``r // copies`` of pipeline ``r % copies``. The ranks of a pipeline are given
    the same micro-batches, which pass through it in the order of their numbers (1F1B), each with
    the random generators' states. Weights are fp32; lower precisions are autocast. An evaluation
    is a collective: every rank has to call `evaluate_step` equally often.

    Args:
        config: the engine's section.
        model: the bare module, the same on every rank; its stages are what is cut.
        optimizer: the optimizer's section.
        train: with precision and memory format resolved (no `auto`).
        seed: the experiment's.
        worker: this rank of the whole group.

    Raises:
        ConfigError: if the model has too few stages, or the ranks are no multiple of the stages.
        ResourceError: if this process has used DeepSpeed on another kind of device before.
    """

    replicated = False
    """See `Engine.replicated`."""

    def __init__(
        self,
        config: PipelineEngineConfig,
        *,
        model: nn.Module,
        optimizer: OptimizerPart,
        train: TrainConfig,
        seed: int,
        worker: Worker,
    ) -> None:
        stages = check_stages(config, model)
        self._train, self._seed, self._worker = train, seed, worker
        self._channels_last = train.memory_format == "channels_last"
        self._view = PipelineWorker(worker, config.stages)
        self._cut = choose_cut(config, stages)
        self.model = model
        self._names = list(model.state_dict())
        set_memory_format(model, torch.contiguous_format)
        # See DeepSpeedEngine: the first broadcast, and ZeRO's flat copies, take this order only.
        sharded = config.zero_stage > 0
        self._stored = store_channels_last(model) if self._channels_last and sharded else {}
        self._optimizer = build_optimizer(optimizer, model)
        self._pipeline = Pipeline(
            config,
            model=model,
            cut=self._cut,
            optimizer=self._optimizer,
            train=train,
            view=self._view,
            source=self._feed,
            loss=self._judge,
        )
        self._engine, self._section = self._pipeline.engine, self._pipeline.section
        self._from_last = self._pipeline.last_rank, self._pipeline.group, worker.device
        if self._channels_last and not sharded:
            set_memory_format(self._section, torch.channels_last)
        if train.precision == "fp16" and not sharded:
            start_momentum(self._optimizer)
        self._entering: Iterator[tuple[int | None, Batch]] = iter(())
        self._leaving: Iterator[tuple[Batch, float | Tensor]] = iter(())
        self._answers: list[Outputs] | None = None
        self._batch: GlobalBatch | None = None
        self._task: Task | None = None
        self._output: StepOutput | None = None
        self._metrics: tuple[str, ...] | None = None

    def held_parameters(self) -> list[Tensor]:
        """See `Engine.held_parameters`: those of this rank's stages."""
        anchors = set(map(id, self._section.anchors))
        mine = (p for p in self._section.parameters() if id(p) not in anchors)
        return [parameter.detach() for parameter in mine if parameter.requires_grad]

    def refresh(self) -> None:
        """See `Engine.refresh`."""

    def train_step(self, task: Task, batch: GlobalBatch, lr: float) -> StepOutput:
        """See `Engine.train_step`. The outputs stay on the last rank, so there are none here.

        Raises:
            ConfigError: if the task has a forward pass of its own.
        """
        check_task(task)
        set_learning_rate(self._optimizer, lr)
        weights = micro_batch_weights(task, batch, self._view)
        every = zip(batch.numbers, batch.micro_batches, weights, strict=True)
        share = [one for one in every if len(one[1])]
        if not share:
            return self._train_on_nothing(task, batch)
        self._start(task, batch, [(number, micro) for number, micro, _ in share])
        self._leaving = iter([(micro, weight) for _, micro, weight in share])
        loss = self._run(len(share))
        return StepOutput(loss, loss.new_empty(0), self._last_metrics())

    def evaluate_step(self, task: Task, batch: Batch) -> StepOutput:
        """See `Engine.evaluate_step`. Every rank gets the outputs."""
        check_task(task)
        set_training(self.model, False)
        parts = chunks(batch if len(batch) else blank(batch, 1), CHUNKS * len(self._cut))
        self._entering, self._answers = iter([(None, part) for part in parts]), []
        self._pipeline.mail.begin(len(parts))
        self._engine.eval_batch(
            self._ticks(), reduce_output=None, bcast_loss=False, num_micro_batches=len(parts)
        )
        answers, self._answers = self._answers, None
        output: StepOutput | None = None
        if self._pipeline.is_last:
            outputs = joined(answers, len(batch))
            batch = batch.to(self._worker.device)
            with torch.no_grad(), autocast(self._worker.device, self._train.precision):
                output = task.loss(outputs, batch)
        return share_output(output, *self._from_last)

    def synchronise(self) -> None:
        """See `Engine.synchronise`."""
        average_batch_statistics(self._section, self._view)

    def save(self, folder: Path) -> None:
        """See `Engine.save`. Writes DeepSpeed's own checkpoint, so that its tools read it."""
        scaler = self._engine.torch_autocast_z0_gradscaler
        client = {"scaler": scaler.state_dict() if scaler else None}
        self._engine.save_checkpoint(str(folder), tag=TAG, client_state=client)
        if self._worker.is_main:
            write_json(folder / LAYOUT, self._shape())

    def load(self, folder: Path) -> None:
        """See `Engine.load`; at the same number of stages and the same cut."""
        client = self._load(folder, optimizer=True)
        if client["scaler"] is not None:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(client["scaler"])

    def load_model_state(self, folder: Path) -> None:
        """See `Engine.load_model_state`."""
        self._load(folder, optimizer=False)

    def model_state(self) -> dict[str, Tensor]:
        """See `Engine.model_state`."""
        mine: dict[str, Tensor] = {}
        if self._view.rank == 0:
            state, owned = self.model.state_dict(), self._pipeline.owned
            mine = {name: one.detach().cpu() for name, one in state.items() if name in owned}
        gathered = self._worker.gather(bare_state(mine, self._stored))
        if gathered is None:
            return {}
        whole = {name: tensor for state in gathered for name, tensor in state.items()}
        return {name: whole[name] for name in self._names}

    def close(self) -> None:
        """See `Engine.close`."""
        self._pipeline.close()
        self._view.close()
        del self._pipeline, self._engine, self._section, self._from_last
        gc.collect()  # DeepSpeed's engine holds itself, and so its groups' threads and sockets

    # --- one step ----------------------------------------------------------------------------

    def _start(self, task: Task, batch: GlobalBatch, share: list[tuple[int, Batch]]) -> None:
        set_training(self.model, True)
        for anchor in self._section.anchors:
            anchor.grad = torch.zeros_like(anchor)
        self._task, self._batch = task, batch
        self._entering = iter(share)

    def _run(self, micro_batches: int) -> Tensor:
        """DeepSpeed's whole step. Returns this pipeline's part of the loss, on all its ranks."""
        self._engine.micro_batches = micro_batches
        self._pipeline.mail.begin(micro_batches)
        self._engine.train_batch(self._ticks())
        self._engine.timers("train_batch").reset()  # which else keeps every step's
        loss: Tensor = self._engine.dp_group_loss
        return loss

    def _train_on_nothing(self, task: Task, batch: GlobalBatch) -> StepOutput:
        """Takes part in the step of other pipelines, which have all of its samples."""
        micro = batch.micro_batches[0]
        self._start(task, batch, [(batch.numbers[0], blank(micro))])
        self._leaving = iter([(micro, 0.0)])
        with buffers_kept(self._section):
            loss = self._run(1)
        return StepOutput(loss, loss.new_empty(0))

    def _feed(self) -> State:
        """The next micro-batch, as the first stage takes it."""
        number, micro = next(self._entering)
        if number is not None:
            assert self._batch is not None
            seed_micro_batch(self._seed, self._batch, number)
        micro = place_inputs(micro, self._worker.device, self._channels_last)
        return stage_input(self.model, micro.inputs)

    def _judge(self, outputs: Outputs, _: Tensor) -> Tensor:
        """The weighted loss of the micro-batch that comes out next, on the last rank."""
        if self._answers is not None:
            self._answers.append(outputs)
            return torch.zeros((), device=self._worker.device)
        assert self._task is not None
        micro, weight = next(self._leaving)
        if not len(micro):
            return empty_loss(outputs).loss
        with autocast(self._worker.device, self._train.precision):
            self._output = self._task.loss(outputs, micro.to(self._worker.device))
        return self._output.loss * weight

    def _last_metrics(self) -> dict[str, Tensor]:
        """The task's metrics of the last micro-batch, on every rank; their names are asked once."""
        found = self._output.metrics if self._output else {}
        if self._metrics is None:
            self._metrics = share_names(tuple(found), *self._from_last)
        return share_scalars(found, self._metrics, *self._from_last)

    def _ticks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What DeepSpeed passes on as inputs and labels, for which `_feed` and `_judge` stand."""
        nothing = torch.zeros(1, device=self._worker.device)
        return itertools.repeat((nothing, nothing))

    # --- checkpoints -------------------------------------------------------------------------

    def _load(self, folder: Path, *, optimizer: bool) -> dict[str, object]:
        """Restores a checkpoint and returns what `save` put beside it.

        Raises:
            CheckpointError: if there is none, it is of another layout, or DeepSpeed can't read it.
        """
        path = folder / LAYOUT
        if not path.exists():
            raise CheckpointError(f"{folder} holds no checkpoint of a pipeline")
        if (saved := read_json(path)) != self._shape():
            raise CheckpointError(
                f"{folder} was saved by a pipeline of {_words(saved)}, but this is one of "
                f"{_words(self._shape())}; resume with the same engine.cut and scale.workers"
            )
        try:
            with silenced():
                _, client = self._engine.load_checkpoint(
                    str(folder), tag=TAG, load_optimizer_states=optimizer
                )
        except Exception as error:
            raise CheckpointError(f"DeepSpeed can't read {folder}: {error}") from error
        return dict(client)

    def _shape(self) -> dict[str, Any]:
        return {"cut": list(self._cut), "copies": self._view.world_size}


def _words(shape: dict[str, Any]) -> str:
    return f"cut {shape['cut']} and {shape['copies']} copies"
