"""A Ray cluster to work on: one of our own on this machine, or one that is there already."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.config.user_code import local_modules
from orchestrator.errors import ResourceError, UserError
from orchestrator.host import Resources

ENVIRONMENT = ("ORCH_", "WANDB_", "NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH_", "DS_", "HF_")
"""Variables whose names start so travel to the workers of a cluster that was there already."""

QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a file stay relative to where the command runs
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
CONNECT_SECONDS = 5.0
_ON_A_NODE = (
    "run the command on a node of the cluster with --address auto, or use "
    "`ray job submit -- orch … --address auto`"
)


@dataclass
class Session:
    """A connection to Ray.

    Attributes:
        address: ``host:port`` of the head.
        attached: whether the cluster was there before; then it is left running.
    """

    address: str
    attached: bool

    def close(self) -> None:
        """Disconnects; ends the cluster if it was started here. May be called twice."""
        if ray.is_initialized():
            ray.shutdown()


def start_or_attach(
    address: str | None = None,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    dashboard: bool = False,
    modules: Sequence[str] = (),
) -> Session:
    """Connects this process to Ray.

    Args:
        address: None starts a cluster on this machine, ``auto`` or ``host:port`` attaches to one
            that this machine is a node of.
        cpus: cores of a started cluster; all of the machine's by default.
        gpus: GPUs of a started cluster; all of the machine's by default.
        dashboard: whether a started cluster serves Ray's dashboard (three seconds more).
        modules: of the user's, which workers must be able to import.

    Raises:
        ResourceError: if the cluster can't be reached, or its nodes run other code.
        UserError: for an address of a kind that can't be used.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Ray warns of its own token; it is on, which is what we want.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if address is None:
        return _start(cpus, gpus, dashboard, modules)
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    _check_address(address)
    return _attach(address, modules)


def _start(cpus: int | None, gpus: int | None, dashboard: bool, modules: Sequence[str]) -> Session:
    context = _init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=dashboard,
        # Workers inherit the environment; only a path that they lack needs a runtime environment,
        # which costs a second for each process.
        runtime_env=_local_paths(modules),
    )
    return Session(str(context.address_info["gcs_address"]), attached=False)


def _attach(address: str, modules: Sequence[str]) -> Session:
    _check_reachable(address)
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)
    } | {name: os.environ[name] for name in QUIET if name.startswith("RAY_TRAIN_")}
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if places := local_modules(modules):
        runtime_env["py_modules"] = [str(place.resolve()) for place in places]
    try:
        context = _init(address=address, runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"can't attach to the Ray cluster at {address!r}: {_line(error)}; "
            "run this on a node of the cluster (`ray status` must answer there, with the "
            "cluster's RAY_AUTH_TOKEN), or leave --address away to use this machine alone"
        ) from error
    try:
        check_code()
    except BaseException:
        ray.shutdown()
        raise
    return Session(str(context.address_info["gcs_address"]), attached=True)


def _init(**arguments: Any) -> Any:
    return ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)


def _check_address(address: str) -> None:
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: Ray's client protocol can't carry training; {_ON_A_NODE}"
        )
    if address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: submitting jobs over HTTP comes later; {_ON_A_NODE}")
    if address not in ("auto", "local") and not _host_port(address):
        raise UserError(f"--address {address}: use `auto` or `host:port`, such as 10.0.0.1:6379")
    if address == "local":
        raise UserError("--address local: leave --address away to use this machine alone")


def _host_port(address: str) -> tuple[str, int] | None:
    host, colon, port = address.rpartition(":")
    return (host, int(port)) if host and colon and port.isdigit() else None


def _check_reachable(address: str) -> None:
    """Fails in seconds where Ray would try for minutes."""
    place = _host_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({_line(error)}); check that its head runs "
            "(`ray status` on a node), or leave --address away to use this machine alone"
        ) from error


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


# --- code on the nodes --------------------------------------------------------------------------


def _local_paths(modules: Sequence[str]) -> dict[str, Any] | None:
    # The folder that the command runs in, and the one of its script, are on workers' paths anyway.
    known = {Path.cwd(), Path(sys.argv[0]).resolve().parent}
    folders = dict.fromkeys(str(p.parent) for p in local_modules(modules) if p.parent not in known)
    if not folders:
        return None
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    return {"env_vars": {"PYTHONPATH": os.pathsep.join([*folders, *inherited])}}


def _describe_code() -> dict[str, str]:
    """What this process would run: orch's version and a digest of its sources.

    Uses nothing outside itself, because nodes without orch must be able to run it too.
    """
    digest = hashlib.sha256()
    try:
        found = importlib.util.find_spec("orchestrator")
        names = ["orchestrator", "orchestrator.models", "orchestrator.serve"] if found else []
        for name in names:
            spec = importlib.util.find_spec(name)
            for folder in (spec.submodule_search_locations or ()) if spec else ():
                for path in sorted(Path(folder).rglob("*.py")):
                    relative = path.relative_to(folder).as_posix()
                    if name != "orchestrator" or not relative.startswith(("models/", "serve/")):
                        digest.update(f"{name}/{relative}".encode() + path.read_bytes())
        version = importlib.metadata.version("orch") if names else "none"
    except (ImportError, importlib.metadata.PackageNotFoundError):
        version = "none"
    return {"version": version, "digest": digest.hexdigest()[:12]}


def check_code() -> None:
    """Checks that every node that is up would run the same code as this process.

    Raises:
        ResourceError: naming the nodes that would not.
    """
    import ray.cloudpickle

    here = _describe_code()
    own = ray.get_runtime_context().get_node_id()
    # By value: by name, a node without orch could not even load the question.
    describe = _by_value(_describe_code)
    asked = {
        node["NodeManagerAddress"]: ray.remote(num_cpus=0, max_retries=0)(describe).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != own
    }
    answers = {place: task.remote() for place, task in asked.items()}
    others = []
    for place, answer in answers.items():
        there = ray.get(answer, timeout=120)
        if there != here:
            others.append(f"{place} has orch {there['version']} ({there['digest']})")
    if others:
        raise ResourceError(
            f"every node must run the same orch as this one, {here['version']} "
            f"({here['digest']}), but {', '.join(others)}; install the same wheel on every node"
        )


def _by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    import types

    copy = types.FunctionType(
        function.__code__,
        {
            "hashlib": hashlib,
            "importlib": importlib,
            "Path": Path,
            "__builtins__": __builtins__,
        },
        function.__name__,
    )
    copy.__module__ = "__main__"
    return copy


# --- resources --------------------------------------------------------------------------------


def slots(resources: Resources) -> int:
    """How many stages with these resources the cluster ever runs at once (0 for none).

    A worker needs all of its cores and GPUs on one node, of those that are up or of those that
    the autoscaler may still add.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    now = sum(_workers(node, resources) for node in nodes)
    added = sum(count * _workers(node, resources) for node, count in _node_types())
    later = min(added, _workers(_largest(), resources))
    return max(now, later) // resources.workers


def check_resources(resources: Resources) -> int:
    """Refuses what the cluster can never run, before anything waits for it.

    Returns:
        How many such stages run at once.

    Raises:
        ResourceError: naming what there is.
    """
    if resources.gpus > 1 and resources.gpus != int(resources.gpus):
        raise ResourceError(
            f"scale.gpus must be a whole number above 1, but got {resources.gpus:g}; only a part "
            "of one GPU can be shared, such as 0.5"
        )
    count = slots(resources)
    if count < 1:
        total = _largest() or ray.cluster_resources()
        each = f"{resources.cpus} CPU cores"
        if resources.gpus:
            each += f" and {resources.gpus:g} GPUs"
        raise ResourceError(
            f"scale asks for {resources.workers} workers with {each} each, but the cluster has "
            f"{total.get('CPU', 0):g} CPU cores and {total.get('GPU', 0):g} GPUs on "
            f"{sum(node['Alive'] for node in ray.nodes())} nodes; lower scale.workers, scale.cpus "
            "or scale.gpus, or use a larger cluster"
        )
    return count


def _workers(node: dict[str, float], resources: Resources) -> int:
    # Half a GPU twice is one GPU; the small addend is for sums like 3 × 0.1.
    fits = [int(node.get("CPU", 0) / resources.cpus + 1e-9)]
    if resources.gpus:
        fits.append(int(node.get("GPU", 0) / resources.gpus + 1e-9))
    return min(fits)


def _largest() -> dict[str, float]:
    """What an autoscaling cluster can grow to; empty for a cluster of fixed size."""
    from ray._private.state import state

    found = state.get_max_resources_from_cluster_config()
    return {name: float(value) for name, value in (found or {}).items()}


def _node_types() -> list[tuple[dict[str, float], int]]:
    """What each kind of node has that an autoscaling cluster can start, and how many it may be."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return [
        (
            {name: float(value) for name, value in kind.resources.items()},
            sys.maxsize if kind.max_count < 0 else kind.max_count,
        )
        for kind in (config.node_group_configs if config else ())
    ]
