"""Inception-v2."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "inception_v2", build=BUILD)
class InceptionV2(Model):
    """Inception-v2, BN-Inception (Ioffe and Szegedy, 2015)."""

    type: Literal["inception_v2"] = "inception_v2"
    width: Multiplier = 1.0
    """Multiplies the channels."""
    dropout: Rate = 0.0
    """Before the classifier."""
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1 and no pooling; `auto` takes it up to 64 pixels."""
