"""What each node has, and whether the nodes fit together."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

State = Literal["ok", "warning", "failed"]
PACKAGES = ("torch", "deepspeed", "ray", "numpy", "orch")
MAX_SKEW_S = 1.0
"""Clocks further apart than this confuse leases, tokens and logs."""
LOW_DISK_GB = 5.0


@dataclass(frozen=True)
class Check:
    """One finding; `detail` says what was seen and, where it is not ok, the way out."""

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class NodeFacts:
    """One node, as a process on it sees it.

    Attributes:
        name: its address in the cluster, or its host name.
        versions: of Python and the packages that results depend on.
        cpus: cores that this process may use.
        memory: bytes of memory, free and in all.
        gpus: name of each GPU.
        disk_free: bytes free where runs are kept; None where that place can't be reached.
        sees: whether the file that the driver wrote there is seen.
        wrote: whether a file could be written there; the reason where not.
    """

    name: str
    versions: dict[str, str]
    cpus: int
    memory: tuple[int, int]
    gpus: tuple[str, ...]
    disk_free: int | None
    sees: bool
    wrote: str


def describe_node(folder: str, token: str, name: str = "") -> NodeFacts:
    """Looks at the node that it runs on.

    Args:
        folder: where runs are kept; every node must reach it.
        token: the driver wrote a file of this name there.
        name: what the cluster calls the node.
    """
    place, free, wrote = Path(folder), None, ""
    try:
        free = shutil.disk_usage(place).free
        (place / f"{token}-{socket.gethostname()}-{os.getpid()}").write_text("seen")
    except OSError as error:
        wrote = str(error)
    memory = psutil.virtual_memory()
    return NodeFacts(
        name or socket.gethostname(),
        _versions(),
        len(os.sched_getaffinity(0)),
        (memory.available, memory.total),
        tuple(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())),
        free,
        (place / token).exists(),
        wrote,
    )


def clock_skew(ask: Callable[[], float], rounds: int = 5) -> float:
    """Seconds by which another clock is surely off ours, by the quickest of some questions.

    Args:
        ask: gives the other clock's `time.time()`.
    """
    answers = []
    for _ in range(rounds):
        before = time.time()
        there = ask()
        after = time.time()
        answers.append((after - before, max(before - there, there - after, 0.0)))
    return min(answers)[1]


def check_nodes(nodes: Sequence[NodeFacts], skews: Sequence[float], folder: Path) -> list[Check]:
    """Judges the nodes together.

    Args:
        skews: seconds that each node's clock is off the driver's.
        folder: where runs are kept.
    """
    return [
        _same_versions(nodes),
        _storage(nodes, folder),
        _clocks(nodes, skews),
        _disk(nodes, folder),
        _devices(nodes),
    ]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _same_versions(nodes: Sequence[NodeFacts]) -> Check:
    first = nodes[0]
    wrong = [
        f"{node.name} has {package} {node.versions[package]}, {first.name} has {version}"
        for node in nodes[1:]
        for package, version in first.versions.items()
        if node.versions[package] != version
    ]
    wrong += [f"{n.name} lacks {p}" for n in nodes for p, v in n.versions.items() if v == "missing"]
    if wrong:
        return Check("versions", "failed", f"{'; '.join(wrong)}; install the same on every node")
    shown = ", ".join(f"{package} {version}" for package, version in first.versions.items())
    return Check("versions", "ok", shown)


def _storage(nodes: Sequence[NodeFacts], folder: Path) -> Check:
    wrong = [f"{node.name} can't write there ({node.wrote})" for node in nodes if node.wrote]
    wrong += [f"{n.name} does not see the driver's file" for n in nodes if not n.sees]
    if wrong:
        way = "mount the same folder on every node, or give another with --runs-dir"
        return Check("storage", "failed", f"{folder}: {'; '.join(wrong)}; {way}")
    return Check("storage", "ok", f"{folder} is written and read by every node")


def _clocks(nodes: Sequence[NodeFacts], skews: Sequence[float]) -> Check:
    off = [(node.name, skew) for node, skew in zip(nodes, skews, strict=True) if skew > MAX_SKEW_S]
    if off:
        shown = ", ".join(f"{name} by {skew:.1f} s" for name, skew in off)
        return Check("clocks", "failed", f"off the driver's: {shown}; synchronise them (NTP)")
    return Check("clocks", "ok", f"within {max(skews):.3f} s of the driver's")


def _disk(nodes: Sequence[NodeFacts], folder: Path) -> Check:
    known = [(n.disk_free / 1e9, n.name) for n in nodes if n.disk_free is not None]
    if not known:
        return Check("disk", "failed", f"no node reaches {folder}")
    least, name = min(known)
    text = f"{least:.0f} GB free in {folder} ({name})"
    return Check("disk", "ok" if least > LOW_DISK_GB else "warning", text)


def _devices(nodes: Sequence[NodeFacts]) -> Check:
    kinds = {tuple(sorted(set(node.gpus))) for node in nodes}
    shown = "; ".join(
        f"{node.name}: {node.cpus} cores, {node.memory[1] / 2**30:.0f} GiB, "
        + (", ".join(node.gpus) or "no GPU")
        for node in nodes
    )
    if len(kinds) > 1:
        return Check("devices", "warning", f"{shown}; unlike GPUs train at the slowest one's pace")
    return Check("devices", "ok", shown)


def as_json(facts: NodeFacts) -> dict[str, Any]:
    """One node, for a JSON document."""
    return {
        "name": facts.name,
        "versions": facts.versions,
        "cpus": facts.cpus,
        "memory_free": facts.memory[0],
        "memory": facts.memory[1],
        "gpus": list(facts.gpus),
    }
