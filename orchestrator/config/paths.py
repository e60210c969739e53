"""Paths in a file are relative to the file, wherever a run's processes work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.config.keys import value_at
from orchestrator.config.yaml import KeyPath, dotted

PATH_KEYS: tuple[KeyPath, ...] = (
    ("data", "source", "path"),
    ("data", "source", "root"),
    ("model", "weights"),
    ("task", "teacher"),
    ("serve", "log", "folder"),
    ("serve", "tls", "cert"),
    ("serve", "tls", "key"),
)
"""Keys that hold a path. A plugin's source that names its keys so is covered too."""


def make_absolute(values: Any, folder: Path) -> None:
    """Makes every path in a file's values absolute, in place; addresses with `://` stay."""
    for path in PATH_KEYS:
        _mend(value_at(values, path[:-1]), str(path[-1]), folder)
        key = dotted(path)
        _mend(value_at(values, ("distill", "set")), key, folder)
        choices = value_at(values, ("sweep", "space", key, "values"))
        if isinstance(choices, list):
            choices[:] = [_absolute(choice, folder) for choice in choices]


def _mend(section: Any, key: str, folder: Path) -> None:
    if isinstance(section, dict) and key in section:
        section[key] = _absolute(section[key], folder)


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not value or "://" in value:
        return value
    home = Path(value).expanduser() if value.startswith("~/") else Path(value)
    return os.path.normpath(folder.absolute() / home)
