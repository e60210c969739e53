"""Loss scaling in fp16: what DeepSpeed and fused SGD get wrong of it, put right."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

START, GROW_EVERY = 2.0**16, 2000
"""The first scale, and the steps without overflow after which it is doubled, as torch has them."""


class AgreedGradScaler(torch.amp.GradScaler):
    """Scales the loss of fp16, and skips a step everywhere that overflows anywhere in a group.

    torch's own for sharded models adds the ranks' flags up, which fused optimizers take for no
    overflow as soon as two ranks have one.
    """

    def __init__(self, device: str, group: dist.ProcessGroup) -> None:
        super().__init__(device)
        self._group = group

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        found = found or {found_inf.device: found_inf}
        for flag in found.values():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return found


def scale_in_zero(optimizer: Any) -> None:
    """Gives a ZeRO optimizer DeepSpeed's own dynamic loss scaler in place of torch's.

    Under autocast each rank has a `GradScaler` for its own shard: the scales of ranks drift apart,
    a step is skipped for the shard that overflowed and taken for the others, a scale that makes
    the gradient's norm infinite is never lowered, and clipping measures the scaled gradient.
    DeepSpeed's scaler goes by that norm, which all ranks share, a pipeline's stages included; it
    unscales before it clips, and is part of the checkpoint.

    Args:
        optimizer: DeepSpeed's, of ZeRO stage 1, 2 or 3. Nothing happens in other precisions.
    """
    if getattr(optimizer, "torch_autocast_gradscaler", None) is None:
        return
    optimizer.torch_autocast_gradscaler = None
    optimizer.loss_scaler = importlib.import_module(
        "deepspeed.runtime.fp16.loss_scaler"
    ).DynamicLossScaler(
        init_scale=START,
        scale_window=GROW_EVERY,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    optimizer.dynamic_loss_scale = True


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Makes the momentum of SGD before its first step, as zeros, with which that step is the same.

    A fused SGD asks for memory in its first step, whose values count from the second on. If the
    first is skipped because it overflows, nobody has written there. Called once the parameters
    have their memory format.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["momentum"]:
            for one in group["params"]:
                optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)
