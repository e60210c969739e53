"""Densely connected networks."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate

NAMES = ("densenet121", "densenet161", "densenet169", "densenet201")


@part("model", *NAMES, build=BUILD)
class DenseNet(Model):
    """DenseNets (Huang et al., 2017)."""

    type: Literal["densenet121", "densenet161", "densenet169", "densenet201"]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` is a 3×3 stem of stride 1 without pooling; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies the growth rate, rounded to fours; the stem has twice as many channels."""
    depth: Multiplier = 1.0
    """Multiplies the layers of every block, rounded up."""
    dropout: Rate = 0.0
    """After every dense layer."""
