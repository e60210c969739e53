"""MobileNet, the first."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "mobilenet_v1", build=BUILD)
class MobileNetV1(Model):
    """MobileNet (Howard et al., 2017)."""

    type: Literal["mobilenet_v1"] = "mobilenet_v1"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies all channels: the paper's α."""
    dropout: Rate = 0.0
    """Before the classifier."""
