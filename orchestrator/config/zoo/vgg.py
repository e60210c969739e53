"""VGG."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate
from orchestrator.config.numbers import Positive

NAMES = tuple(f"vgg{layers}{norm}" for layers in (11, 13, 16, 19) for norm in ("", "_bn"))


@part("model", *NAMES, build=BUILD)
class VGG(Model):
    """VGG (Simonyan and Zisserman, 2015), with batch norms and without."""

    type: Literal[
        "vgg11",
        "vgg11_bn",
        "vgg13",
        "vgg13_bn",
        "vgg16",
        "vgg16_bn",
        "vgg19",
        "vgg19_bn",
    ]
    width: Multiplier = 1.0
    """Multiplies the channels of the convolutions."""
    hidden: Positive = 4096
    """Of both hidden layers of the classifier."""
    dropout: Rate = 0.5
    """Behind each hidden layer of the classifier."""
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` leaves out the first of five poolings; `auto` takes it up to 64 pixels."""
