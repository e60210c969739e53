"""What workers would get on the nodes of a cluster: cores and GPUs, and the memory there."""

from __future__ import annotations

import contextlib

import torch

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.user_code import named_modules
from orchestrator.errors import ResourceError
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.nodes import every_node
from orchestrator.launch.ray_host import RayHost
from orchestrator.placement import place, resources_of
from orchestrator.plan.machine import Room, room_for


def place_there(config: ExperimentConfig, address: str) -> tuple[ExperimentConfig, Room]:
    """The file with a cluster's cores and GPUs, as its run would have them, and the least room.

    Every node is asked for as many workers as its cores or GPUs have place for, at most all of
    them; the room is that of the one with the least for each.

    Args:
        config: as the user wrote it; a file with a `sweep` section is placed as its trials are.
        address: of the cluster, as `--address` takes it.

    Raises:
        ResourceError: if the cluster can't be reached, or has no place for all workers.
        ConfigError: if the file does not fit what there is, as fp16 without a GPU.
    """
    host = RayHost(start_or_attach(address, modules=named_modules(config)))
    try:
        placed = place(config, host, sweep=config.sweep is not None)
        return placed, _least(placed, address)
    finally:
        host.close()


def _least(config: ExperimentConfig, address: str) -> Room:
    each = resources_of(config)
    found: list[tuple[Room, str]] = []
    with contextlib.ExitStack() as stack:
        nodes = every_node(gpus=each.gpus)
        for node in nodes:
            stack.callback(node.close)
        for node in nodes:
            places = [config.scale.workers]
            places += [int(node.resources.get("CPU", 0) / each.cpus)] if each.cpus else []
            places += [int(node.resources.get("GPU", 0) / each.gpus)] if each.gpus else []
            if min(places) > 0:
                room = node.ask(_room_here, bool(each.gpus), min(places))
                found.append((room, node.name))
    if not found:
        raise ResourceError(
            f"no node that {address} has now is large enough for a worker of {each.cpus:g} cores "
            f"and {each.gpus:g} GPUs; ask again when the autoscaler has added one"
        )
    room, name = min(found, key=lambda one: one[0].each)
    return Room(room.total, room.workers, f"{room.what}, node {name}")


def _room_here(gpu: bool, workers: int) -> Room:
    """Runs on a node."""
    return room_for(torch.device("cuda:0" if gpu else "cpu"), workers)
