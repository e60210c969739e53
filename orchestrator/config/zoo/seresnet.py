"""Residual networks with squeeze-excite."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD
from orchestrator.config.zoo.resnet import Residual

NAMES = ("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152")


@part("model", *NAMES, build=BUILD)
class SEResNet(Residual):
    """Residual networks with squeeze-excite (Hu et al., 2018)."""

    type: Literal["seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152"]
