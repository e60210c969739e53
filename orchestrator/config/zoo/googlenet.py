"""GoogLeNet."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "googlenet", build=BUILD)
class GoogLeNet(Model):
    """GoogLeNet, Inception v1 (Szegedy et al., 2015), with batch norms."""

    type: Literal["googlenet"] = "googlenet"
    width: Multiplier = 1.0
    """Multiplies the channels."""
    dropout: Rate = 0.2
    """Before the classifier."""
    aux: bool = True
    """Two auxiliary heads in the middle, for training alone."""
    aux_dropout: Rate = 0.7
    """In the auxiliary heads."""
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1 and no pooling; `auto` takes it up to 64 pixels."""
    transform_input: bool = False
    """For the published weights: turns ImageNet's normalisation into theirs, 0.5 and 0.5."""
