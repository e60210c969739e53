"""What this machine lacks for a run, found before the run is started."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.errors import ResourceError


def shortages(config: ExperimentConfig) -> tuple[str, ...]:
    """What a run on this machine alone would be refused for, each with the way out.

    Args:
        config: with `scale.cpus` and `scale.gpus` resolved.
    """
    return (*_places(config), *_offload(config))


def _places(config: ExperimentConfig) -> Iterator[str]:
    scale = config.scale
    assert scale.cpus != "auto" and scale.gpus != "auto"
    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    if scale.workers * scale.cpus > cores or scale.workers * scale.gpus > gpus:
        each = f"{scale.cpus} CPU cores" + (f" and {scale.gpus:g} GPUs" if scale.gpus else "")
        yield (
            f"scale asks for {scale.workers} workers with {each} each, but this machine has "
            f"{cores} CPU cores and {gpus} GPUs; plan with --address for a cluster, or lower "
            "scale.workers, scale.cpus or scale.gpus"
        )


def _offload(config: ExperimentConfig) -> Iterator[str]:
    offload = getattr(config.engine, "offload", None)
    if offload is None or "nvme" not in (offload.optimizer, offload.parameters):
        return
    from orchestrator.engine.deepspeed_setup import check_offload, import_deepspeed

    try:
        import_deepspeed(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        check_offload(offload)
    except ResourceError as error:
        yield str(error)
