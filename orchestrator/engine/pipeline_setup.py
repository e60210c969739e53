"""DeepSpeed's side of a pipeline: its module, its engine, what it gets wrong, and its end."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.config.engines import DeepSpeedEngineConfig, PipelineEngineConfig
from orchestrator.config.training import TrainConfig
from orchestrator.engine.deepspeed_setup import (
    Membership,
    deepspeed_config,
    import_deepspeed,
    silenced,
)
from orchestrator.engine.loss_scale import AgreedGradScaler, scale_in_zero
from orchestrator.engine.pipeline_layout import Layout, tied_groups
from orchestrator.engine.pipeline_mail import Mail, carry
from orchestrator.engine.pipeline_section import Section, Source
from orchestrator.engine.pipeline_worker import PipelineWorker
from orchestrator.tasks.base import Outputs

Loss = Callable[[Outputs, Tensor], Tensor]


class Pipeline:
    """A rank's part of a model in DeepSpeed's pipeline engine. Made by every rank.

    Args:
        config: the engine's section.
        model: the whole one, on the CPU; what other ranks hold is freed.
        cut: how many of its stages each rank has.
        optimizer: over the whole model's parameters; those of other ranks are dropped.
        train: with precision and memory format resolved.
        view: this rank.
        source: feeds the first rank.
        loss: of the last rank's outputs.

    Attributes:
        engine: DeepSpeed's.
        section: this rank's stages.
        owned: names in the model's state of what no earlier rank holds.
        mail: what it sends to the ranks beside it and gets from them.
    """

    def __init__(
        self,
        config: PipelineEngineConfig,
        *,
        model: nn.Module,
        cut: tuple[int, ...],
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
        view: PipelineWorker,
        source: Source,
        loss: Loss,
    ) -> None:
        self._membership = Membership(view.device)
        self._deepspeed = import_deepspeed(view.device)
        layout = Layout(model, cut, view.stage)
        self.owned = layout.owned()
        self._tied = tied_groups(layout, view.stage, view.rank, view.world_size)
        empty = _keep(optimizer, layout)
        layout.release(view.device)
        module = self._module(model, layout, source, loss, anchors=1 + len(empty))
        self.section: Section = module.forward_funcs[0]
        for group, anchor in zip(empty, list(self.section.anchors)[1:], strict=True):
            group["params"] = [anchor]
        self._mark(layout)
        zero = DeepSpeedEngineConfig(zero_stage=config.zero_stage)
        with self._membership.or_leave(), silenced():
            self.engine, *_ = self._deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=deepspeed_config(zero, train, self.section, view.device),
                dist_init_required=False,
            )
        self._grid = module.mpu()
        self.group: dist.ProcessGroup = self._grid.get_pipe_parallel_group()
        self.last_rank: int = self._grid.stage_to_global(config.stages - 1)
        self.is_last: bool = self.engine.is_last_stage()
        self._mend(alone=view.world_size == 1 and not config.zero_stage)
        rank_of = self._grid.stage_to_global
        before = rank_of(view.stage - 1) if view.stage else None
        after = None if self.is_last else rank_of(view.stage + 1)
        self.mail = Mail(before, after, view.device)
        carry(self.engine, self.mail)

    def close(self) -> None:
        """Frees the engine and the process groups made for it."""
        self.engine.destroy()
        grid = self._grid
        made = [grid.ds_model_proc_group, grid.dp_proc_group, grid.pp_proc_group]
        made += [grid.slice_proc_group, self.engine.module.world_group]
        for group in [*made, *dict.fromkeys(group for _, group in self._tied)]:
            with suppress(ValueError, AssertionError):  # one that was ended with its like
                dist.destroy_process_group(group)
        _module("deepspeed.utils.groups").mpu = None
        _module("deepspeed.runtime.pipe.p2p")._grid = None
        self._membership.leave()

    def _module(
        self, model: nn.Module, layout: Layout, source: Source, loss: Loss, anchors: int
    ) -> Any:
        """DeepSpeed's module, of which only this rank's layer is built."""
        pipe = _module("deepspeed.pipe")
        last = len(layout.parts) - 1
        about = {"last": last, "source": source, "anchors": anchors}
        with silenced():
            self._deepspeed.init_distributed(dist_init_required=False, verbose=False)
            module = pipe.PipelineModule(
                layers=[
                    pipe.LayerSpec(Section, model, part, place=n, **about)
                    for n, part in enumerate(layout.parts)
                ],
                num_stages=last + 1,
                loss_fn=loss,
                partition_method="uniform",
                dynamic_shape=True,
            )
        # Its own ties are between layers of one class; ours are any parameters.
        module.get_tied_weights_and_groups = lambda: self._tied
        return module

    def _mark(self, layout: Layout) -> None:
        """Says which parameters count in the gradient's norm: each one once."""
        for parameter in self.section.parameters():
            copied = layout.is_copy(parameter)
            parameter.model_parallel = not copied  # type: ignore[attr-defined]
            parameter.ds_pipe_replicated = copied  # type: ignore[attr-defined]

    def _mend(self, alone: bool) -> None:
        """Changes what DeepSpeed does not do for such a pipeline."""
        engine = self.engine
        # It copies every gradient twice to average it over one rank.
        engine.pipeline_enable_backward_allreduce = not alone
        if engine.torch_autocast_z0_gradscaler is not None:
            # Its own would skip a step on the one rank that saw an infinite gradient.
            device = torch.device(engine.device)
            scaler = AgreedGradScaler(device.type, self.group)
            scaler.scale(torch.zeros((), device=device))  # starts it, where no loss ever is
            engine.torch_autocast_z0_gradscaler = scaler
        scale_in_zero(engine.optimizer)


def _keep(optimizer: torch.optim.Optimizer, layout: Layout) -> list[dict[str, Any]]:
    """Drops the parameters of other ranks from an optimizer without state.

    Returns:
        The groups that are empty now. They have to get some parameter, for ZeRO talks to the
        other stages once for each group, and so each of them must have as many.
    """
    for group in optimizer.param_groups:
        group["params"] = [one for one in group["params"] if layout.holds(one)]
    return [group for group in optimizer.param_groups if not group["params"]]


def _module(name: str) -> Any:
    return importlib.import_module(name)
