"""Tasks: what is computed from a batch."""

import importlib
import sys
from types import ModuleType
from typing import Any


def _import_torchmetrics() -> None:
    """Imports torchmetrics without SciPy's signal processing, which takes half of its time.

    It imports that only to give one of its functions an old name back. Whoever starts a run waits.
    """
    name = "scipy.signal"
    if name in sys.modules:
        return
    stand_in: Any = ModuleType(name)

    def real(attribute: str) -> Any:
        """What a version of torchmetrics asks for beyond that name."""
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.hamming, stand_in.__getattr__ = None, real
    sys.modules[name] = stand_in
    try:
        import torchmetrics  # noqa: F401
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


_import_torchmetrics()
