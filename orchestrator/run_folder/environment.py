"""`env.json`: what a run ran on. Chosen facts only, never the environment variables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("orch", "torch", "ray", "deepspeed", "optuna", "numpy", "torchmetrics", "wandb")


def describe_environment(
    seeds: Mapping[str, int], data_digest: str, split_digest: str
) -> dict[str, Any]:
    """What `env.json` holds: code commit, versions, hardware, data digests, seeds."""
    return {
        "format": 1,
        "code": code_version(),
        "versions": versions(),
        "hardware": hardware(),
        "data": _data(data_digest, split_digest),
        "seeds": dict(seeds),
    }


def environment_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, one line each; a resumed run reports it.

    Other versions, another processor or another number of threads may change the last bits of
    what is computed.
    """
    changes = []
    for section in ("code", "versions", "hardware"):
        old, new = before.get(section) or {}, after.get(section) or {}
        changes += [
            f"{section}.{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    return changes


def data_changes(before: Mapping[str, Any], data_digest: str, split_digest: str) -> list[str]:
    """What differs between an environment's data and these, one line each.

    Nothing can go on with other data: they are split anew, and what a model was trained on may be
    among what it is judged by. What `before` does not tell counts as unchanged.
    """
    old, new = before.get("data") or {}, _data(data_digest, split_digest)
    return [
        f"data.{key}: {str(old[key])[:12]} -> {value[:12]}"
        for key, value in new.items()
        if old.get(key) not in (None, value)
    ]


def _data(data_digest: str, split_digest: str) -> dict[str, str]:
    return {"digest": data_digest, "split_digest": split_digest}


def versions() -> dict[str, str]:
    """Python's and the packages' versions, read without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, and GPUs if torch is loaded."""
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
    }


def code_version() -> dict[str, Any]:
    """The commit that orch itself comes from: a checkout's, or the one pip installed."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        commit = _git(checkout, "rev-parse", "HEAD")
        if commit:
            changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
            return {"commit": commit, "modified": bool(changed)}
    return {"commit": _installed_commit(), "modified": False}


def _installed_commit() -> str | None:
    try:
        text = metadata.distribution("orch").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return str(commit) if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
