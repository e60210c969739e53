"""How much memory a process may still take here."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = 600 * 2**20
"""What a further process of ours takes before it has a network: Python, PyTorch, Ray, DeepSpeed."""
SPARE = 0.1
"""Share of the memory that a plan leaves alone: kernels' own workspace, fragmentation, other
programs."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """Memory for the workers of one node.

    Attributes:
        total: bytes that may still be taken: of the device, or of the machine.
        workers: who share them.
        what: where the number comes from.
    """

    total: int
    workers: int
    what: str

    @property
    def each(self) -> int:
        """Bytes that a plan may give to each worker."""
        return int(self.total * (1 - SPARE) / self.workers)


def room_for(device: torch.device, workers: int) -> Room:
    """What each of the workers on this node may take.

    A GPU has one worker. On a CPU all share the machine; each beyond the first also takes what a
    process takes.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Room(free, 1, f"free on {torch.cuda.get_device_name(device)}")
    available, what = min(_limits(), key=lambda limit: limit[0])
    return Room(max(available - (workers - 1) * PROCESS, 0), workers, what)


def _limits() -> Iterator[tuple[int, str]]:
    """Bytes that are left under every limit that holds for this process."""
    yield _meminfo()["MemAvailable"], "available on this machine"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * os.sysconf("SC_PAGE_SIZE")
        yield max(soft - used, 0), "left of this process's limit (ulimit -v)"
    for folder in _own_cgroups():
        left = _left_in(folder)
        if left is not None:
            yield left, f"left of the limit of control group {folder.name or '/'}"


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _own_cgroups() -> Iterator[Path]:
    """This process's control group and those around it, of the unified hierarchy or `memory`."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUP / controllers if controllers else _CGROUP
        folder = root / path.lstrip("/")
        # Inside a container the path may be the host's; the mount's root is ours then.
        yield from (one for one in (folder, *folder.parents) if one.is_relative_to(root))


def _left_in(folder: Path) -> int | None:
    """Bytes that a control group may still take; None where it has no limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text().strip()
            taken = int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # Where there is no limit, the old hierarchy says a number near 2⁶³.
        if most != "max" and int(most) < 2**60:
            return max(int(most) - taken + int(stat.get(cache, 0)), 0)
    return None
