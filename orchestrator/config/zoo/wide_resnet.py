"""Wide residual networks."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate
from orchestrator.config.zoo.resnet import Residual


@part("model", "wide_resnet50_2", build=BUILD)
class WideResNet(Residual):
    """ResNet-50 with twice the inner channels (Zagoruyko and Komodakis, 2016)."""

    type: Literal["wide_resnet50_2"] = "wide_resnet50_2"


@part("model", "wrn_28_10", build=BUILD)
class WRN(Model):
    """The wide residual network for images of 32 pixels (Zagoruyko and Komodakis, 2016)."""

    type: Literal["wrn_28_10"] = "wrn_28_10"
    width: Multiplier = 1.0
    """Multiplies the channels of the three groups: 160, 320 and 640."""
    dropout: Rate = 0.0
    """Between the two convolutions of each block; the paper takes 0.3."""
