"""ResNeXts."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD
from orchestrator.config.zoo.resnet import Residual

NAMES = ("resnext50_32x4d", "resnext101_32x8d")


@part("model", *NAMES, build=BUILD)
class ResNeXt(Residual):
    """Residual networks with grouped convolutions (Xie et al., 2017)."""

    type: Literal["resnext50_32x4d", "resnext101_32x8d"]
