"""Inception-v3."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate


@part("model", "inception_v3", build=BUILD)
class InceptionV3(Model):
    """Inception-v3 (Szegedy et al., 2016); its label smoothing is the loss's."""

    type: Literal["inception_v3"] = "inception_v3"
    width: Multiplier = 1.0
    """Multiplies the channels."""
    dropout: Rate = 0.5
    """Before the classifier."""
    aux: bool = True
    """An auxiliary head before the last modules, for training alone."""
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` halves nothing; `auto` takes it below the 75 pixels that the original needs."""
    transform_input: bool = False
    """For the published weights: turns ImageNet's normalisation into theirs, 0.5 and 0.5."""
