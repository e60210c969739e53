"""LeNet-5."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Rate


@part("model", "lenet5", build=BUILD)
class LeNet5(Model):
    """LeNet-5 (LeCun et al., 1998), for images of 12 pixels and up."""

    type: Literal["lenet5"] = "lenet5"
    activation: Literal["relu", "tanh"] = "relu"
    """The paper has tanh."""
    pool: Literal["max", "average"] = "max"
    """The paper averages."""
    dropout: Rate = 0.0
    """Before the output layer."""
