"""What the engines have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.host import Worker
from orchestrator.models.layers.penalties import Penalised, take_penalty
from orchestrator.seeding import DROPOUT, derive
from orchestrator.tasks.base import Outputs, StepOutput, Task

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the operations that allow it; weights and reductions stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def place_inputs(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """The batch on the device, its images in the model's memory format."""
    batch = batch.to(device)
    if not channels_last:
        return batch
    # Not `contiguous`, which leaves images of one channel as they are: their bytes are the same in
    # both orders, and a convolution goes by the strides of its input to choose that of its output.
    inputs = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in batch.inputs.items()
    }
    return Batch(batch.ids, inputs, batch.targets)


def set_memory_format(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Converts a model's four-dimensional tensors in place."""
    return model.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def seed_micro_batch(seed: int, batch: GlobalBatch, number: int) -> None:
    """Seeds dropout and the like by the micro-batch's place, whoever computes it."""
    place = derive(seed, DROPOUT, batch.epoch, batch.index, number)
    # Not `torch.manual_seed`: for every kind of device that is not in use it formats the call
    # stack, to have it when that one starts, which takes up to a millisecond.
    torch.default_generator.manual_seed(place)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(place)


def micro_batch_weights(task: Task, batch: GlobalBatch, worker: Worker) -> Sequence[float | Tensor]:
    """What the loss of each of this rank's micro-batches counts in the step.

    Ranks average their gradients, so weights that add up to the number of ranks give the mean
    over the global batch's answers. Called by every rank; nothing waits for the device.
    """
    counts = [task.weight(micro) for micro in batch.micro_batches]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return [len(micro) / batch.samples * worker.world_size for micro in batch.micro_batches]
    total = worker.sum(torch.stack(known).sum()).clamp(min=1)
    return [count * worker.world_size / total for count in known]


def with_penalty(output: StepOutput, layers: Sequence[Penalised]) -> StepOutput:
    """Adds the terms that layers have of their own to the loss of a micro-batch.

    The weights of micro-batches add up to 1 over a step, and so the terms count once.
    """
    penalty = take_penalty(layers)
    if penalty is None:
        return output
    metrics = output.metrics | {"penalty": penalty.detach()}
    return replace(output, loss=output.loss + penalty, metrics=metrics)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets every group's rate, relative to the schedule's where it has a scale of its own."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def set_training(model: nn.Module, training: bool) -> None:
    """Switches the mode only where it differs: walking the modules costs time at every step."""
    if model.training != training:
        model.train(training)


def empty_loss(outputs: Outputs) -> StepOutput:
    """A zero that is connected to the parameters, so that collectives stay in step."""
    every = (outputs,) if isinstance(outputs, Tensor) else outputs
    zero = torch.stack([one.float().sum() for one in every]).sum() * 0.0
    return StepOutput(zero, every[0][:0])


def blank(batch: Batch, size: int = 2) -> Batch:
    """So many samples of zeros, without targets, in the shape of an empty batch.

    They stand in for a micro-batch that other ranks have. Ranks match gradients by the graph, and
    an empty batch, or evaluation mode, has another one: auxiliary heads are silent in it, and a
    batch norm takes no variance of fewer than two.
    """
    inputs = {name: one.new_zeros((size, *one.shape[1:])) for name, one in batch.inputs.items()}
    return Batch(batch.ids.new_zeros(size), inputs, {})


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undoes what the block does to a model's buffers, such as blank samples to running means."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in kept:
        buffer.copy_(value)


def average_batch_statistics(model: nn.Module, worker: Worker) -> None:
    """Averages the running mean and variance of every BatchNorm over ranks, in one message."""
    if worker.world_size == 1:
        return
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not statistics:
        return
    flat = worker.sum(torch.cat([buffer.flatten() for buffer in statistics]))
    flat /= worker.world_size
    parts = torch.split(flat, [buffer.numel() for buffer in statistics])
    for buffer, part in zip(statistics, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
