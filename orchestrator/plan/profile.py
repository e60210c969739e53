"""What one micro-batch needs, found by running it on fake tensors: shapes and dtypes, no memory.

A fake tensor says that it is on a device, so autocast, and the choice between a device's kernels,
are those of the real run. The largest networks take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from orchestrator.data.text.rows import LABEL, TARGET_TOKENS, TOKENS
from orchestrator.data.types import Batch, DataInfo
from orchestrator.engine.pipeline_cut import stage_input
from orchestrator.engine.shared import autocast, place_inputs
from orchestrator.errors import OrchError, UserError
from orchestrator.optim.names import stages_of
from orchestrator.plan.tracker import StorageTracker
from orchestrator.tasks.base import Task

_COUNTED_AS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        torch.ops.aten._scaled_dot_product_flash_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Attention's kernels for CPUs, and those with the same arguments that PyTorch has formulas of."""


@dataclass(frozen=True)
class Moment:
    """A parameter's gradient is ready.

    Attributes:
        parameter: its place among the trainable parameters.
        peak: the most working bytes since the moment before; this gradient is among them.
        live: working bytes now, without this gradient.
    """

    parameter: int
    peak: int
    live: int


@dataclass(frozen=True)
class StepProfile:
    """Forward and backward of one micro-batch, in bytes on one rank.

    Working bytes are all that is alive, but neither parameters, model buffers, gradients that are
    ready, nor the samples themselves.

    Attributes:
        micro_batch: samples.
        samples: bytes of the micro-batch's inputs and targets.
        kept: what the forward pass leaves for the backward pass: the activations.
        forward: the most working bytes during the forward pass.
        moments: the backward pass, from gradient to gradient.
        answers: what stays when the backward pass is over: the outputs, until the next ones come.
        flops: floating-point operations of both passes; a multiply-add is two.
    """

    micro_batch: int
    samples: int
    kept: int
    forward: int
    moments: tuple[Moment, ...]
    answers: int
    flops: int

    @property
    def working(self) -> int:
        """The most working bytes at any moment."""
        return max([self.forward, *(moment.peak for moment in self.moments)])


class Pretence:
    """A block in which every new tensor is a fake one that says it is on the device.

    Tensors of one pretence know each other; the block may be entered again and again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mode = FakeTensorMode()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enters the block."""
        with self._mode, self.device:
            yield


def pretend(network: nn.Module, *, channels_last: bool) -> None:
    """Gives a network of the meta device fake parameters and buffers, within a `Pretence`.

    It is built on the meta device because initialisations know that one, and skip what needs
    numbers.
    """
    made: dict[Tensor, Tensor] = {}  # a weight that is used twice stays one
    for module in network.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, one in own:
            if one not in made:
                layout = torch.contiguous_format
                if channels_last and one.ndim == 4:
                    layout = torch.channels_last
                fake = torch.empty(one.shape, dtype=one.dtype, memory_format=layout)
                learns = one.requires_grad
                is_parameter = isinstance(one, nn.Parameter)
                made[one] = nn.Parameter(fake, requires_grad=learns) if is_parameter else fake
            setattr(module, name, made[one])


def profile_step(
    network: nn.Module,
    task: Task,
    batch: Batch,
    *,
    device: torch.device,
    precision: str,
    channels_last: bool,
) -> StepProfile:
    """Runs a micro-batch forward and backward, as the engines do.

    Args:
        network: see `pretend`; put into training mode. All is within one `Pretence`.
        batch: see `pretended_batch`.
        precision: fp32, bf16 or fp16.

    Raises:
        UserError: if the network needs numbers to run.
    """
    network.train()
    trainable = [one for one in network.parameters() if one.requires_grad]
    held = [*network.parameters(), *network.buffers(), *_tensors(batch)]
    moments: list[Moment] = []
    with _running(network), _FlopCounter() as counter, StorageTracker(held) as tracker:
        base = tracker.live

        def note(place: int) -> Callable[[Tensor], None]:
            def ready(parameter: Tensor) -> None:
                parameter.grad = None
                peak = tracker.restart_peak() - base
                moments.append(Moment(place, peak, tracker.live - base))

            return ready

        hooks = [
            one.register_post_accumulate_grad_hook(note(n))  # type: ignore[no-untyped-call]
            for n, one in enumerate(trainable)
        ]
        placed = place_inputs(batch, device, channels_last)
        with autocast(device, precision):
            output = task.loss(task.forward(network, placed), placed)
        kept, forward = tracker.live - base, tracker.restart_peak() - base
        output.loss.backward()  # type: ignore[no-untyped-call]
        for hook in hooks:
            hook.remove()
        answers = tracker.live - base
    return StepProfile(
        micro_batch=len(batch),
        samples=_bytes(batch),
        kept=kept,
        forward=forward,
        moments=tuple(moments),
        answers=answers,
        flops=counter.flops,
    )


def profile_evaluation(
    network: nn.Module,
    task: Task,
    batch: Batch,
    *,
    device: torch.device,
    precision: str,
    channels_last: bool,
) -> int:
    """The most working bytes of one evaluated batch, its samples included.

    Raises:
        UserError: if the network needs numbers to run.
    """
    network.eval()
    held = [*network.parameters(), *network.buffers()]
    with _running(network), torch.no_grad(), StorageTracker(held) as tracker:
        before = tracker.live
        placed = place_inputs(batch, device, channels_last)
        with autocast(device, precision):
            # The model's answer to the inputs; one that is written token by token needs no more.
            Task.forward(task, network, placed)
    return int(tracker.peak - before) + _bytes(batch)


def profile_stages(
    network: nn.Module, batch: Batch, *, device: torch.device, precision: str, channels_last: bool
) -> tuple[int, ...]:
    """What each of a network's own stages leaves for its backward pass, in bytes.

    Raises:
        UserError: if the network needs numbers to run.
    """
    network.train()
    held = [*network.parameters(), *network.buffers(), *_tensors(batch)]
    kept = []
    with _running(network), StorageTracker(held) as tracker:
        state = stage_input(network, place_inputs(batch, device, channels_last).inputs)
        for stage in stages_of(network):
            before = tracker.live
            with autocast(device, precision):
                state = stage.fn(state)
            kept.append(tracker.live - before)
    return tuple(kept)


def pretended_batch(task: Task, info: DataInfo, size: int) -> Batch:
    """A micro-batch as the loaders make them, within a `Pretence`."""
    label = torch.empty(size, dtype=torch.long)
    if info.vocabulary is None:
        inputs = {"image": torch.empty(size, *info.shape)}
    else:
        names = (TOKENS, TARGET_TOKENS)[: len(info.shape)]
        inputs = {
            name: torch.empty(size, length, dtype=torch.long)
            for name, length in zip(names, info.shape, strict=True)
        }
        if task.per_token:
            label = torch.empty(size, info.shape[-1], dtype=torch.long)
    return Batch(torch.empty(size, dtype=torch.long), inputs, {LABEL: label})


@contextmanager
def _running(network: nn.Module) -> Iterator[None]:
    """Turns what a network does without numbers into a message."""
    try:
        yield
    except OrchError:
        raise
    except Exception as error:
        why = str(error).split("\n", 1)[0]
        raise UserError(
            f"{type(network).__name__} does not run without numbers, so its memory can't be "
            f"planned: {type(error).__name__}: {why}"
        ) from error


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations by PyTorch's formulas.

    `FlopCounterMode` has the same formulas, but also follows modules, which takes longer.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **kwargs or {})
        packet: Any = getattr(func, "overloadpacket", None)
        if formula := flop_registry.get(_COUNTED_AS.get(packet, packet)):
            self.flops += formula(*args, **kwargs or {}, out_val=output)
        return output


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch.ids, *batch.inputs.values(), *batch.targets.values()]


def _bytes(batch: Batch) -> int:
    return sum(one.untyped_storage().nbytes() for one in _tensors(batch))
