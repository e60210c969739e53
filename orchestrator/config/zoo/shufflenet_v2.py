"""ShuffleNets V2."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate

NAMES = ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0")


@part("model", *NAMES, build=BUILD)
class ShuffleNetV2(Model):
    """ShuffleNet V2 (Ma et al., 2018)."""

    type: Literal[
        "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"
    ]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1 and no pooling; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies the variant's channels, the stem's excepted."""
    dropout: Rate = 0.0
    """Before the classifier."""
