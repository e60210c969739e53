"""The part of a model that one rank of a pipeline runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.engine.pipeline_parcel import Parcel, pack, unpack
from orchestrator.models.stages import Stage, State, run_stages

Source = Callable[[], State]
"""Gives the first stage's input of the next micro-batch, the generators seeded for it."""


class Section(nn.Module):
    """Consecutive stages of a model as one layer of DeepSpeed's pipeline.

    It registers the modules of its stages, and so its parameters are what this rank trains; the
    model that they belong to keeps them under their own names.

    Args:
        model: the whole one; the stages are asked for anew at every pass, as in its `forward`.
        part: which of its stages.
        place: this section's, from 0.
        last: the place of the last section.
        source: feeds the first section.
        anchors: how many parameters of one zero to have beside the model's.

    Attributes:
        anchors: they get a gradient of zero, where nothing else on this rank has one: the first
            for frozen stages, which have none to give back, the others for the optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        part: range,
        *,
        place: int,
        last: int,
        source: Source,
        anchors: int,
    ) -> None:
        super().__init__()
        self._part, self._source = part, source
        self._first, self._last = place == 0, place == last
        # In a tuple, so that torch does not register the whole model.
        self._model = (model,)
        stages = self._stages()
        self.parts = nn.ModuleList(dict.fromkeys(m for stage in stages for m in stage.modules))
        inside = set(map(id, self.parts.parameters()))
        loose = [one for stage in stages for one in (*stage.loose, *stage.shared)]
        for number, one in enumerate({id(p): p for p in loose if id(p) not in inside}.values()):
            self.register_parameter(f"loose{number}", one)
        self.anchors = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(anchors))

    def forward(self, parcel: Parcel) -> Any:
        """The next rank's parcel; of the last section, the model's outputs."""
        state = self._source() if self._first else unpack(parcel)
        model = self._model[0]
        state = run_stages(self._stages(), state, recompute=getattr(model, "_checkpointing", False))
        if self._last:
            return state
        payload, notes = pack(state, draws=self.training)
        if torch.is_grad_enabled() and not payload.requires_grad:
            payload = _Anchored.apply(payload, self.anchors[0])  # type: ignore[no-untyped-call]
        return payload, notes

    def _stages(self) -> Sequence[Stage]:
        stages: Sequence[Stage] = self._model[0].stages()  # type: ignore[operator]
        return stages[self._part.start : self._part.stop]


class _Anchored(torch.autograd.Function):
    """A tensor as it is, but with a gradient that goes nowhere."""

    @staticmethod
    def forward(ctx: Any, payload: Tensor, anchor: Tensor) -> Tensor:
        ctx.like = anchor
        return payload.view_as(payload)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros_like(ctx.like)
