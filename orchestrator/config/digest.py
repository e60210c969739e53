"""What makes two runs the same experiment: a digest of all that changes results."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Any

from orchestrator.config.dump import plain
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.yaml import KeyPath, dotted

SECTIONS = ("data", "model", "task", "optimizer", "schedule", "seed", "train")
_LEFT_OUT: tuple[KeyPath, ...] = (("data", "source", "root"), ("train", "log_every"))
_FILES: tuple[KeyPath, ...] = (("data", "source", "path"), ("model", "weights"))


def config_digest(config: ExperimentConfig) -> str:
    """SHA-256, in hex, of the sections that change results, as canonical JSON.

    Name, scale, engine, tracking and folders are left out: of a path only the last component
    counts, so that a moved data set or weights file is still the same experiment.
    """
    text = json.dumps(_content(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_difference(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """One line for each key that makes the digests differ: `optimizer.lr: 0.001 -> 0.003`."""
    return _difference(_content(old), _content(new))


def section_difference(old: ExperimentConfig, new: ExperimentConfig, name: str) -> list[str]:
    """One line for each key of a section that differs, such as `ensemble.size: 5 -> 3`."""
    return _difference({name: plain(old).get(name)}, {name: plain(new).get(name)})


def _difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, after = _flat(old), _flat(new)
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _content(config: ExperimentConfig) -> dict[str, Any]:
    values = plain(config)
    content = {key: values[key] for key in SECTIONS}
    for path in (*_LEFT_OUT, *_FILES):
        section = content
        for key in path[:-1]:
            section = section[str(key)]
        value = section.pop(str(path[-1]), None)
        if path in _FILES and value is not None:
            section[str(path[-1])] = PurePath(str(value)).name
    return content


def _flat(value: Any, path: KeyPath = ()) -> dict[str, str]:
    """Every leaf as JSON text, by dotted key."""
    if isinstance(value, dict) and value:
        items = [(str(key), item) for key, item in value.items()]
        return {k: v for key, item in items for k, v in _flat(item, (*path, key)).items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {k: v for n, item in enumerate(value) for k, v in _flat(item, (*path, n)).items()}
    return {dotted(path): json.dumps(value, ensure_ascii=False)}
