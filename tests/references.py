"""The libraries that this project's networks and transforms are compared with."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

REFERENCE = Path(sys.prefix) / "reference"
"""Where reference libraries are installed that must not be found by accident: torchmetrics
imports torchvision and transformers when they are there; the first fails beside a CPU build of
torch, and the second takes seconds."""

_library: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision, without its compiled operators where they don't fit this build of torch."""
    with _findable():
        try:
            import torchvision
        except RuntimeError:  # operator torchvision::nms does not exist
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            _declare_operators()
            import torchvision
    return torchvision


def import_timm() -> ModuleType:
    """timm, which imports torchvision."""
    import_torchvision()
    with _findable():
        import timm

    return timm


def import_transformers() -> ModuleType:
    """transformers, told not to look for anything on the network; it imports torchvision.

    It imports a model when its name is first used, so those that are used are named here.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import_torchvision()
    with _findable():
        import transformers

        for name in (
            "BertForSequenceClassification",
            "BertForPreTraining",
            "CvtForImageClassification",
            "GPT2LMHeadModel",
        ):
            getattr(transformers, name)
    return transformers


@contextlib.contextmanager
def _findable() -> Iterator[None]:
    """Lets reference libraries be imported while it lasts."""
    sys.path.append(str(REFERENCE))
    try:
        yield
    finally:
        sys.path.remove(str(REFERENCE))


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.append(library)  # or they would go with it
