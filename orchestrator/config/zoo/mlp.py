"""Multi-layer perceptrons."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import Seq, part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive


@part("model", "mlp", build=BUILD)
class MLP(Model):
    """Fully connected layers on all pixels at once; the baseline for everything else."""

    type: Literal["mlp"] = "mlp"
    hidden: Seq[Positive] = (512, 256)
    """Units of each hidden layer; none at all gives logistic regression."""
    dropout: Rate = 0.0
    """After each hidden layer."""
