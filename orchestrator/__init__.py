"""Deep-learning experiments on Ray from one YAML file.

The public functions load their libraries when they are first asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_PUBLIC = {
    "evaluate": "orchestrator.api",
    "load_config": "orchestrator.config.load",
    "load_model": "orchestrator.api",
    "sweep": "orchestrator.api",
    "train": "orchestrator.api",
}

__all__ = ["evaluate", "load_config", "load_model", "sweep", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


class _Package(ModuleType):
    """The package. `sweep` and `evaluate` are public functions and the names of rooms too."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a room sets it here, where a caller expects the function of its name.
        if name in _PUBLIC and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


class _Room(ModuleType):
    """A room of the package that is called as the public function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
