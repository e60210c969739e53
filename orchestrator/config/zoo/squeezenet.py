"""SqueezeNets."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate

NAMES = ("squeezenet1_0", "squeezenet1_1")


@part("model", *NAMES, build=BUILD)
class SqueezeNet(Model):
    """SqueezeNet (Iandola et al., 2016)."""

    type: Literal["squeezenet1_0", "squeezenet1_1"]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` is a 3×3 stem of stride 1 without pooling; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies the channels of stem and fire modules."""
    dropout: Rate = 0.5
    """Before the head's convolution."""
    norm: bool | None = None
    """A batch norm behind each convolution but the head's; by default with the small stem."""
