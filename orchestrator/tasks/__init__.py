"""Tasks: what is computed from a batch."""

import sys
from types import ModuleType


def _import_torchmetrics() -> None:
    """Imports torchmetrics without SciPy's signal processing, which takes half of its time.

    It imports that only to give one of its functions an old name back. Whoever starts a run waits.
    """
    name = "scipy.signal"
    if name in sys.modules:
        return
    sys.modules[name] = ModuleType(name)
    sys.modules[name].hamming = None  # type: ignore[attr-defined]
    try:
        import torchmetrics  # noqa: F401
    finally:
        del sys.modules[name]


_import_torchmetrics()
