"""`serve.json`: how a model runs on a machine, so that it is measured there once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.config.serving import ServeConfig
from orchestrator.files import read_json, write_json
from orchestrator.run_folder.ensemble_file import NAME as ENSEMBLE
from orchestrator.run_folder.environment import hardware, versions
from orchestrator.run_folder.model_file import model_digest
from orchestrator.run_folder.paths import RunPaths
from orchestrator.serve.executors.ways import Way

FORMAT = 1
NAME = "serve.json"
_KEPT = 8
"""Decisions in a file: a model moves between a few machines and settings."""
_SETTINGS = ("executor", "precision", "tolerance", "max_batch", "early_exit", "quorum")


@dataclass(frozen=True)
class Decision:
    """How a model runs.

    Attributes:
        kind: the way in words.
        max_batch: see `Executor.max_batch`.
        measured: of each way in words: seconds by batch size, largest difference of a
            probability, or why it was not measured.
        samples: what was measured on, in words.
    """

    way: Way
    kind: str
    max_batch: int
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: str = ""


def situation(root: Path, config: ServeConfig, device: str, threads: int) -> dict[str, Any]:
    """Everything that a decision depends on: weights, versions, hardware and settings."""
    if RunPaths(root).kind == "ensemble":  # the file has the digests of its members
        digest = hashlib.sha256((root / ENSEMBLE).read_bytes()).hexdigest()
    else:
        digest = model_digest(root)
    found, here = versions(), hardware()
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["onnxruntime"] = metadata.version("onnxruntime")
    return {
        "model": digest,
        "versions": {name: found.get(name) for name in ("orch", "torch", "onnxruntime")},
        "cpu": here["cpu"],
        "cores": here["cores"],
        "gpus": here["gpus"] if device.startswith("cuda") else [],
        "device": device,
        "threads": threads,
        "serve": {name: getattr(config, name) for name in _SETTINGS},
    }


def read_decision(root: Path, about: Mapping[str, Any]) -> Decision | None:
    """What was decided in this situation before; None if nothing was, or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = _kept(root)[_key(about)]["decision"]
        return Decision(**(kept | {"way": Way(**kept["way"])}))
    return None


def keep_decision(root: Path, about: Mapping[str, Any], decision: Decision) -> None:
    """Writes what was decided beside the model; a folder that can't be written is no error."""
    with contextlib.suppress(OSError):
        try:
            kept = _kept(root)
        except (OSError, ValueError, KeyError, TypeError):
            kept = {}
        kept.pop(_key(about), None)
        kept[_key(about)] = {"situation": dict(about), "decision": asdict(decision)}
        newest = dict(list(kept.items())[-_KEPT:])
        write_json(root / NAME, {"format": FORMAT, "decisions": newest})


def _kept(root: Path) -> dict[str, Any]:
    content = read_json(root / NAME)
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']} is not {FORMAT}")
    return dict(content["decisions"])


def _key(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
