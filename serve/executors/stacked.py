"""Members of one architecture as one network: every operation runs once, for all of them.

On a GPU, and with small batches, the time goes into starting operations, of which there are then
fewer by the number of members. Convolutional networks have their members in the channels, see
`channels`. For what else there is, torch's `vmap` gives each operation a further axis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from orchestrator.serve.executors.channels import UnstackableError, side_by_side
from orchestrator.serve.executors.forwards import DTYPES, Precision
from orchestrator.serve.executors.graph import Graph, holder
from orchestrator.serve.executors.packed import pack

StackedForward = Callable[[Sequence[Tensor]], Tensor]
"""From what each member reads, on the CPU, to logits float32[M, B, classes] on the CPU."""


@dataclass(frozen=True)
class Stack:
    """Networks of one architecture, and how they compute.

    Attributes:
        graph: their architecture.
        networks: what differs in weights alone.
        same_inputs: whether all read the same numbers.
    """

    graph: Graph
    networks: Sequence[nn.Module]
    device: torch.device
    precision: Precision
    same_inputs: bool


def stacked_forward(stack: Stack, example: Tensor) -> StackedForward:
    """The logits of all networks at once, in the way that suits their architecture.

    Args:
        example: what one member reads, of as many samples as batches mostly have.
    """
    try:
        return ChannelsForward(stack, example)
    except UnstackableError:
        return VmapForward(stack)


class ChannelsForward:
    """Members in the channels of one network; see `StackedForward`.

    Raises:
        UnstackableError: see `side_by_side`.
    """

    def __init__(self, stack: Stack, example: Tensor) -> None:
        self._device, self._dtype = stack.device, DTYPES[stack.precision]
        self._members, self._same_inputs = len(stack.networks), stack.same_inputs
        module = side_by_side(stack.graph, stack.networks, same_inputs=stack.same_inputs)
        module.to(self._device, self._dtype)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._device.type == "cpu":
            module = pack(module, self._placed([example] * self._members))
        self._all = module

    def __call__(self, xs: Sequence[Tensor]) -> Tensor:
        """See `StackedForward`."""
        logits: Tensor = self._all(self._placed(xs))
        return logits.float().cpu().view(len(logits), self._members, -1).transpose(0, 1)

    def _placed(self, xs: Sequence[Tensor]) -> Tensor:
        x = xs[0] if self._same_inputs else torch.cat(list(xs), 1)
        if x.ndim != 4:
            return x.to(self._device, self._dtype)
        return x.to(self._device, self._dtype, memory_format=torch.channels_last)


class VmapForward:
    """Any networks; see `StackedForward`."""

    def __init__(self, stack: Stack) -> None:
        self._device, self._dtype = stack.device, DTYPES[stack.precision]
        states = [dict(stack.graph.with_weights(n).named_buffers()) for n in stack.networks]
        self._state = {
            name: torch.stack([state[name] for state in states]).to(stack.device)
            for name in states[0]
        }
        if stack.precision != "fp32":
            self._state = {
                name: t.to(self._dtype) if t.is_floating_point() else t
                for name, t in self._state.items()
            }
        operations = copy.deepcopy(stack.graph.module.graph)
        base = fx.GraphModule(holder(states[0]), operations).to("meta")

        def one(state: dict[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(base, state, (x,))
            return logits

        self._all = torch.vmap(one, in_dims=(0, None if stack.same_inputs else 0))
        self._same_inputs = stack.same_inputs

    def __call__(self, xs: Sequence[Tensor]) -> Tensor:
        """See `StackedForward`."""
        x = xs[0] if self._same_inputs else torch.stack(list(xs))
        x = x.to(self._device, self._dtype) if x.is_floating_point() else x.to(self._device)
        logits: Tensor = self._all(self._state, x)
        return logits.float().cpu()
