"""What every test shares."""

import os
import sys
from pathlib import Path

# Two cores are shared by the tests' own processes; results with one thread repeat to the bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

REFERENCE = Path(sys.prefix) / "reference"
"""Where reference libraries are installed that must not be found by accident: torchmetrics
imports torchvision when it is there, which fails beside a CPU build of torch."""


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, importable beside a torch whose build has none of its compiled operators."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.append(str(REFERENCE))
    import torchvision

    yield torchvision
    del library


@pytest.fixture(scope="session")
def timm(torchvision):
    """timm, which imports torchvision."""
    import timm

    return timm
