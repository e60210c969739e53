"""MobileNetV2."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "mobilenet_v2", build=BUILD)
class MobileNetV2(Model):
    """MobileNetV2 (Sandler et al., 2018)."""

    type: Literal["mobilenet_v2"] = "mobilenet_v2"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies the channels; the last convolution's only above 1."""
    dropout: Rate = 0.2
    """Before the classifier."""
