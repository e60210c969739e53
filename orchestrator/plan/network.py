"""What a plan has to know of a network and of its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from orchestrator.config.optimizers import OptimizerPart
from orchestrator.optim.groups import parameter_groups
from orchestrator.optim.optimizers import build_optimizer
from orchestrator.plan.tracker import StorageTracker

FLOAT = 4
"""Bytes of a weight or a gradient."""
_PROBE = 64
"""Side of the square parameters on which an optimizer's appetite is measured."""


@dataclass(frozen=True)
class Appetite:
    """What an optimizer needs for each byte of a parameter.

    Attributes:
        state: bytes that it keeps.
        update: bytes that it works with, for a moment.
        at_once: whether it updates all parameters at once, or one after another.
    """

    state: float
    update: float
    at_once: bool


@dataclass(frozen=True)
class NetworkFacts:
    """Sizes of a network and of what its optimizer keeps.

    Attributes:
        parameters: elements of each trainable parameter, in the network's order.
        groups: the optimizer's groups, as places in `parameters`.
        frozen_bytes: parameters that do not learn.
        buffer_bytes: such as BatchNorm's statistics.
        rearranged_bytes: trainable parameters whose order in memory differs when it is channels
            last.
        appetite: the optimizer's.
    """

    parameters: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    frozen_bytes: int
    buffer_bytes: int
    rearranged_bytes: int
    appetite: Appetite

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the parameters that learn, which are also those of their gradients."""
        return sum(self.parameters) * FLOAT

    def optimizer_bytes(self, elements: int) -> int:
        """What the optimizer keeps for so many elements."""
        return round(self.appetite.state * elements * FLOAT)

    def update_bytes(self, pieces: Sequence[int]) -> int:
        """What an update takes for a moment, given the elements of what it updates."""
        elements = sum(pieces) if self.appetite.at_once else max(pieces, default=0)
        return round(self.appetite.update * elements * FLOAT)


def network_facts(
    network: nn.Module, optimizer: OptimizerPart, *, device: torch.device, channels_last: bool
) -> NetworkFacts:
    """Reads the sizes of a network, whose tensors may be fake.

    Raises:
        UserError: for an optimizer's pattern that matches nothing.
    """
    trainable = [one for one in network.parameters() if one.requires_grad]
    places = {id(one): place for place, one in enumerate(trainable)}
    groups = parameter_groups(network, optimizer)
    frozen = sum(one.numel() for one in network.parameters() if not one.requires_grad)
    rearranged = [one for one in trainable if channels_last and _has_two_orders(one)]
    return NetworkFacts(
        parameters=tuple(one.numel() for one in trainable),
        groups=tuple(tuple(places[id(one)] for one in group["params"]) for group in groups),
        frozen_bytes=frozen * FLOAT,
        buffer_bytes=sum(one.numel() * one.element_size() for one in network.buffers()),
        rearranged_bytes=sum(one.numel() for one in rearranged) * FLOAT,
        appetite=measure_appetite(optimizer, device),
    )


def measure_appetite(config: OptimizerPart, device: torch.device) -> Appetite:
    """Lets an optimizer update small parameters on the CPU, and counts.

    What differs from the real network, such as a factored state, is not seen.
    """
    plain = config.model_copy(update={"groups": (), "layer_decay": None})
    probe = nn.ParameterList(nn.Parameter(torch.zeros(_PROBE, _PROBE)) for _ in range(2))
    optimizer = build_optimizer(plain, probe)
    for parameter in probe:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the state
    tensors = [one for state in optimizer.state.values() for one in state.values()]
    kept = sum(one.nbytes for one in tensors if torch.is_tensor(one) and one.ndim > 0)
    known = [*probe, *(one.grad for one in probe), *filter(torch.is_tensor, tensors)]
    with StorageTracker(known) as tracker:
        before = tracker.live
        optimizer.step()
    one = _PROBE * _PROBE * FLOAT
    # On a GPU PyTorch updates all parameters in a few calls, unless one kernel does it in place.
    fused = any(group.get("fused") for group in optimizer.param_groups)
    at_once = device.type == "cuda" and not fused and "foreach" in optimizer.defaults
    working = 0.0 if fused else (tracker.peak - before) / one
    return Appetite(kept / (2 * one), working, at_once)


def _has_two_orders(weight: nn.Parameter) -> bool:
    """Whether channels-last differs from contiguous."""
    if weight.ndim != 4:
        return False
    _, channels, height, width = weight.shape
    return channels > 1 and height * width > 1
