"""DeepSpeed's process-wide side: its import, its process group and its configuration."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from orchestrator.config.deepspeed_keys import merged
from orchestrator.config.engines import DeepSpeedEngineConfig, OffloadConfig
from orchestrator.config.optimizers import Adam, AdamW, OptimizerPart
from orchestrator.config.training import TrainConfig
from orchestrator.engine.shared import DTYPES
from orchestrator.errors import ResourceError
from orchestrator.files import locked
from orchestrator.host import Worker
from orchestrator.optim.groups import parameter_groups
from orchestrator.optim.optimizers import build_optimizer

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

    @contextmanager
    def or_leave(self) -> Iterator[None]:
        """Leaves again where what needs the membership can't be made."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

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
    config: DeepSpeedEngineConfig, train: TrainConfig, model: nn.Module, device: torch.device
) -> dict[str, Any]:
    """DeepSpeed's own configuration.

    Weights stay fp32 and autocast lowers the precision, exactly as in the plain engine. Batch
    sizes are nominal: the engine weighs losses and marks the accumulation's end itself.

    Raises:
        ResourceError: if something is to be kept on NVMe and this machine can't.
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
    if config.compression != "none":
        settings["communication_data_type"] = config.compression
    if config.offload is not None:
        settings["zero_optimization"] |= _offload(config.offload, device)
        # What is not Adam is updated by its PyTorch implementation, on the CPU.
        settings["zero_force_ds_cpu_optimizer"] = False
    return merged(settings, config.deepspeed)


def build_deepspeed_optimizer(
    config: DeepSpeedEngineConfig, optimizer: OptimizerPart, model: nn.Module, worker: Worker
) -> torch.optim.Optimizer:
    """The file's optimizer; Adam's update of offloaded state is DeepSpeed's vectorised one.

    Raises:
        ResourceError: if CPU-Adam can't be compiled here.
    """
    offloaded = config.offload is not None and config.offload.optimizer != "none"
    if not offloaded or not isinstance(optimizer, Adam | AdamW):
        return build_optimizer(optimizer, model)
    _compile_cpu_adam(worker)
    first, second = optimizer.betas
    made: torch.optim.Optimizer = _repeatable(_module("deepspeed.ops.adam").DeepSpeedCPUAdam)(
        parameter_groups(model, optimizer),
        lr=optimizer.lr,
        betas=(first, second),
        eps=optimizer.eps,
        adamw_mode=isinstance(optimizer, AdamW),
    )
    return made


def _repeatable(base: Any) -> Any:
    """CPU-Adam whose resumed runs repeat to the bit.

    It keeps β^t from step to step as a running product, and after a resume as a power, which
    round differently. Asked in between with other betas, it computes the power in every step.
    """

    class RepeatableCPUAdam(base):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            none = [torch.zeros(1) for _ in range(4)]
            self.ds_opt_adam.adam_update(self.opt_id, 1, 0.0, 0.123, 0.456, 1.0, 0.0, True, *none)
            return super().step(closure)

    return RepeatableCPUAdam


def _compile_cpu_adam(worker: Worker) -> None:
    """Compiles it once: rank 0 first, so that the others find it done."""
    failure = None
    for turn in (True, False):
        if worker.is_main is turn:
            try:
                with silenced(), _own_extensions():
                    _module("deepspeed.ops.op_builder").CPUAdamBuilder().load(verbose=False)
            except Exception as error:
                failure = error
        worker.barrier()
    if worker.agree(int(failure is not None)):
        raise ResourceError(
            f"engine.offload: DeepSpeed's CPU-Adam does not compile here ({failure or 'elsewhere'})"
            "; install a C++ compiler and ninja, or choose another optimizer than adam and adamw"
        )


@contextmanager
def _own_extensions() -> Iterator[None]:
    """Has torch keep compiled extensions in a folder that one process uses at a time.

    Torch waits for whoever compiles as long as a file is there, which a process that was killed
    leaves for ever. This lock ends with its process, so whoever has it knows that nobody compiles.
    """
    # Imported here: it brings setuptools, which nothing but compiling needs.
    from torch.utils import cpp_extension

    before = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(before or cpp_extension.get_default_build_root())
    folder = root / "orch" / f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = folder / f"torch{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        for left in folder.glob("*/lock"):
            left.unlink()
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        try:
            yield
        finally:
            del os.environ["TORCH_EXTENSIONS_DIR"]
            if before is not None:
                os.environ["TORCH_EXTENSIONS_DIR"] = before


def check_offload(config: OffloadConfig) -> None:
    """Refuses what can't be kept where the file wants it, after DeepSpeed's import.

    Raises:
        ResourceError: if NVMe is asked for and libaio is missing.
    """
    if "nvme" not in (config.optimizer, config.parameters):
        return
    with silenced():
        compatible = _module("deepspeed.ops.op_builder").AsyncIOBuilder().is_compatible()
    if not compatible:
        raise ResourceError(
            "engine.offload to nvme needs libaio, which is not on this machine; install "
            "libaio-dev, or offload to cpu"
        )


def _offload(config: OffloadConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's sections for what is kept elsewhere.

    Raises:
        ResourceError: if NVMe is asked for and libaio is missing.
    """
    check_offload(config)
    pinned = device.type != "cpu"
    sections: dict[str, Any] = {}
    for key, place in (
        ("offload_optimizer", config.optimizer),
        ("offload_param", config.parameters),
    ):
        if place != "none":
            sections[key] = {"device": place, "pin_memory": pinned}
            if place == "nvme":
                sections[key]["nvme_path"] = config.path
    return sections


def _module(name: str) -> Any:
    return importlib.import_module(name)
