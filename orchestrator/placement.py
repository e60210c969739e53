"""How many cores and GPUs each worker of a run gets from a host."""

from __future__ import annotations

import bisect

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive
from orchestrator.errors import OrchError
from orchestrator.host import Host, Resources


def place(config: ExperimentConfig, host: Host, *, sweep: bool) -> ExperimentConfig:
    """The file with `auto` cores and GPUs replaced by what the host has for each worker.

    Raises:
        ResourceError: if the host can't hold even one run.
    """
    scale = config.scale
    gpus = scale.gpus
    if gpus == "auto":
        gpus = 1.0 if _room(host, Resources(1, 1, 1)) else 0.0
    cpus = scale.cpus
    if cpus == "auto":
        cores = host.capacity(Resources(1, 1, 0))
        # A GPU's worker gets its share of the cores. Small models train faster as many
        # one-core trials than as one trial on many cores.
        sharers = host.capacity(Resources(1, 1, gpus)) if gpus else scale.workers
        most = 1 if sweep and not gpus else cores // max(sharers, 1)
        cpus = _cores_of_a_node(host, sharers, gpus, most)
    placed = derive(config, {"scale.cpus": cpus, "scale.gpus": gpus})
    host.capacity(resources_of(placed))
    return placed


def resources_of(config: ExperimentConfig) -> Resources:
    """What one run of a placed file needs."""
    scale = config.scale
    assert scale.cpus != "auto" and scale.gpus != "auto"
    return Resources(scale.workers, scale.cpus, scale.gpus)


def _cores_of_a_node(host: Host, workers: int, gpus: float, most: int) -> int:
    """The most cores, at least one, that the host can give to each of so many workers.

    A worker's cores are all on one node, so its share of all nodes' cores may be too many.
    """

    def too_many(cpus: int) -> bool:
        return _room(host, Resources(1, cpus, gpus)) < workers

    # The more cores for each, the fewer find a place: the first number that fails, halving.
    return max(1, bisect.bisect_left(range(1, most + 1), True, key=too_many))


def _room(host: Host, resources: Resources) -> int:
    try:
        return host.capacity(resources)
    except OrchError:
        return 0
