"""A shallow residual network for small images."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "resnet9", build=BUILD)
class ResNet9(Model):
    """A fast residual network of nine layers for small images, after Page (2018)."""

    type: Literal["resnet9"] = "resnet9"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1 and no pooling; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies all channels."""
    dropout: Rate = 0.0
    """Before the classifier."""
