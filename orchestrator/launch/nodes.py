"""Questions to every node of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Node:
    """A process on one node, to be asked.

    Attributes:
        name: the node's address.
        resources: what it has in all, by Ray's names.
    """

    name: str
    actor: Any
    resources: Mapping[str, float]

    def ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns there; the node must have the code it runs."""
        return ray.get(self.actor.run.remote(call, *arguments), timeout=ANSWER_SECONDS)

    def clock(self) -> float:
        """Its `time.time()`."""
        found: float = self.ask(time.time)
        return found

    def close(self) -> None:
        """Ends the process."""
        ray.kill(self.actor)


class _Asked:
    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)


def every_node(gpus: float = 0) -> list[Node]:
    """A process on each node that is up, this one's first.

    Args:
        gpus: that it holds where the node has as many, so that it sees one.
    """
    own = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: node["NodeID"] != own)
    return [
        Node(
            node["NodeManagerAddress"],
            ray.remote(_Asked)
            .options(
                num_cpus=0,
                num_gpus=gpus if node["Resources"].get("GPU", 0) >= gpus else 0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(),
            node["Resources"],
        )
        for node in alive
    ]
