"""DeepSpeed's process-wide side: its import, its process group and its configuration."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from orchestrator.config.engines import DeepSpeedEngineConfig
from orchestrator.config.training import TrainConfig
from orchestrator.engine.shared import DTYPES
from orchestrator.errors import ResourceError

BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced in one message; DeepSpeed's own 5e8 reserves gigabytes."""


def import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed for a kind of device, with errors only in its log, on stderr.

    Raises:
        ResourceError: if this process has used DeepSpeed on another kind of device before.
    """
    if device.type == "cpu":
        # Read once, at the first import. Without it DeepSpeed looks for a GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _module("deepspeed")
    kind = deepspeed.get_accelerator().device_name()
    if kind != device.type:
        raise ResourceError(
            f"DeepSpeed runs on one kind of device per process; it has {kind}, but this worker "
            f"trains on {device.type}; set scale.gpus to match, or DS_ACCELERATOR={device.type}"
        )
    # Its collectives' old names, once a call.
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning
    )
    # Its warnings are about settings that are ours, not the user's.
    deepspeed.logger.setLevel("ERROR")
    for handler in deepspeed.logger.handlers:
        # It writes to stdout, which belongs to the command's result.
        if getattr(handler, "stream", None) in (sys.stdout, sys.__stdout__):
            handler.setStream(sys.stderr)
    # A shared-memory all-reduce for inference, compiled on first use by every rank at once.
    # Training never calls it.
    _module("deepspeed.comm.torch").build_shm_op = lambda: None
    return deepspeed


class Membership:
    """What DeepSpeed needs of its process: a group, of one where there is none, and a local rank.

    Args:
        device: the worker's.
    """

    def __init__(self, device: torch.device) -> None:
        # Read at start and, under stage 3, at every step; launchers of several workers set it.
        self._set_rank = "LOCAL_RANK" not in os.environ
        if self._set_rank:
            os.environ["LOCAL_RANK"] = str(device.index or 0)
        self._made_group = not dist.is_initialized()
        if self._made_group:
            backend = "gloo" if device.type == "cpu" else "nccl"
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)

    def leave(self) -> None:
        """Drops what DeepSpeed remembers of the process, and ends what was made for it."""
        groups = _module("deepspeed.utils.groups")
        groups._WORLD_GROUP = None
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        _module("deepspeed.comm.comm").cdb = None
        autocast = _module("deepspeed.runtime.torch_autocast")
        # Else an fp16 run would leave its loss scaling to the next run of a warm process.
        autocast.TORCH_AUTOCAST_INITIALIZED, autocast.TORCH_AUTOCAST_DTYPE = False, None
        if self._made_group and dist.is_initialized():
            dist.destroy_process_group()
        if self._set_rank:
            os.environ.pop("LOCAL_RANK", None)


@contextmanager
def silenced() -> Iterator[None]:
    """Keeps DeepSpeed's prints and progress bars off stdout, which belongs to the result."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def deepspeed_config(
    config: DeepSpeedEngineConfig, train: TrainConfig, model: nn.Module
) -> dict[str, Any]:
    """DeepSpeed's own configuration.

    Weights stay fp32 and autocast lowers the precision, exactly as in the plain engine. Batch
    sizes are nominal: the engine weighs losses and marks the accumulation's end itself.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip_norm or 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": min(trainable, BUCKET_ELEMENTS),
            "stage3_param_persistence_threshold": config.persist_below,
        },
    }
    if train.precision != "fp32":
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": str(DTYPES[train.precision]).removeprefix("torch."),
            # Modules whose gradients travel in low precision: none, as in the plain engine.
            "lower_precision_safe_modules": [],
        }
    return settings


def _module(name: str) -> Any:
    return importlib.import_module(name)
