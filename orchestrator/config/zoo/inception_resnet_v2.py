"""Inception-ResNet-v2."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "inception_resnet_v2", build=BUILD)
class InceptionResNetV2(Model):
    """Inception-ResNet-v2 (Szegedy et al., 2017)."""

    type: Literal["inception_resnet_v2"] = "inception_resnet_v2"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` halves the image once, not thrice, and pads it; `auto` takes it below 75 pixels."""
    width: Multiplier = 1.0
    """Multiplies all channels."""
    depth: Multiplier = 1.0
    """Multiplies the blocks of each kind, rounded up."""
    dropout: Rate = 0.0
    """Before the classifier; the paper trains with 0.2."""
