"""MobileNetV3."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate

NAMES = ("mobilenet_v3_small", "mobilenet_v3_large")


@part("model", *NAMES, build=BUILD)
class MobileNetV3(Model):
    """MobileNetV3 (Howard et al., 2019)."""

    type: Literal["mobilenet_v3_small", "mobilenet_v3_large"]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies all channels."""
    dropout: Rate = 0.2
    """Before the classifier."""
