"""Which tensors of a model each rank of a pipeline holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.models.stages import Stage
from orchestrator.optim.names import stages_of


class Layout:
    """The sections of a pipelined model and what is in them.

    Args:
        model: the whole one, with real tensors.
        cut: how many of its stages each section has.
        place: this rank's section, from 0.

    Attributes:
        parts: of each section, which of the model's stages.
        part: this rank's.
    """

    def __init__(self, model: nn.Module, cut: Sequence[int], place: int) -> None:
        ends = [0, *itertools.accumulate(cut)]
        self.parts = [range(start, end) for start, end in itertools.pairwise(ends)]
        self.part = self.parts[place]
        self._model, self._place = model, place
        stages = stages_of(model)
        sections = [stages[part.start : part.stop] for part in self.parts]
        self._used = [{id(p): p for stage in one for p in _uses(stage)} for one in sections]
        self._modules: dict[int, int] = {}
        for number, section in enumerate(sections):
            for root in (module for stage in section for module in stage.modules):
                for module in root.modules():
                    self._modules.setdefault(id(module), number)

    def holds(self, parameter: Tensor) -> bool:
        """Whether this rank's section uses a parameter."""
        return id(parameter) in self._used[self._place]

    def owned(self) -> set[str]:
        """Names in the model's state of what this section holds and no earlier one does."""
        names = set()
        for path, module in self._model.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if self._owner(parameter) == self._place:
                    names.add(prefix + name)
            if self._modules.get(id(module), 0) == self._place:
                names |= {prefix + name for name, _ in module.named_buffers(recurse=False)}
        return names

    def tied(self) -> Mapping[tuple[int, ...], list[nn.Parameter]]:
        """The learning parameters that several sections use, by the places of those.

        In the same order on every rank, before `release`.
        """
        found: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in self._model.parameters():
            places = tuple(n for n, used in enumerate(self._used) if id(parameter) in used)
            if len(places) > 1 and parameter.requires_grad:
                found.setdefault(places, []).append(parameter)
        return found

    def is_copy(self, parameter: Tensor) -> bool:
        """Whether an earlier section holds the parameter too."""
        return self._owner(parameter) not in (self._place, None)

    def release(self, device: torch.device) -> None:
        """Frees what other sections hold: it stays in the model without memory, on `meta`.

        Buffers that belong to no section go to the device.
        """
        for module in self._model.modules():
            parameters = dict(module.named_parameters(recurse=False))
            kept = {name for name, one in parameters.items() if self.holds(one)}
            for name in parameters.keys() - kept:
                old = parameters[name]
                empty = nn.Parameter(torch.empty_like(old, device="meta"), old.requires_grad)
                module._parameters[name] = empty
            elsewhere = bool(parameters) and not kept
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to("meta" if elsewhere else device)

    def _owner(self, parameter: Tensor) -> int | None:
        places = (n for n, used in enumerate(self._used) if id(parameter) in used)
        return next(places, None)


def tied_groups(
    layout: Layout, place: int, copy: int, copies: int
) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
    """This rank's parameters that other sections hold too, each with the group that sums it.

    Called by every rank.
    """
    found = []
    for places, parameters in layout.tied().items():
        for number in range(copies):
            group = dist.new_group([one * copies + number for one in places])
            if place in places and number == copy:
                found += [(parameter, group) for parameter in parameters]
    return found


def _uses(stage: Stage) -> Sequence[nn.Parameter]:
    return (*stage.parameters(), *stage.shared)
