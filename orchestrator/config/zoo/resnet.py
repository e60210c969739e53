"""Residual networks."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class Residual(Model):
    """What ResNets and those built on them share."""

    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` is a 3×3 stem of stride 1 without pooling; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies the channels of every stage."""
    dropout: Rate = 0.0
    """Before the classifier."""
    zero_init: bool = True
    """Starts each residual branch at zero, so that a fresh block is the identity."""


@part("model", *NAMES, build=BUILD)
class ResNet(Residual):
    """Residual networks (He et al., 2016)."""

    type: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
