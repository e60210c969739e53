"""AlexNet."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate
from orchestrator.config.numbers import Positive


@part("model", "alexnet", build=BUILD)
class AlexNet(Model):
    """AlexNet (Krizhevsky et al., 2012), as a single column."""

    type: Literal["alexnet"] = "alexnet"
    width: Multiplier = 1.0
    """Multiplies the channels of the convolutions."""
    hidden: Positive = 4096
    """Of both hidden layers of the classifier."""
    dropout: Rate = 0.5
    """Before each hidden layer of the classifier."""
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` starts with a 3×3 convolution of stride 1; `auto` takes it up to 64 pixels."""
