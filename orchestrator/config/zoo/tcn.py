"""Temporal convolutional networks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive


@part("model", "tcn", build=BUILD)
class TCN(Model):
    """Causal, dilated convolutions in residual blocks (Bai et al., 2018)."""

    takes: ClassVar[str] = "tokens"

    type: Literal["tcn"] = "tcn"
    embedding: Positive = 128
    """Features of a token."""
    channels: Positive = 128
    levels: Annotated[int, Field(ge=1, le=20)] = 4
    """Blocks; their dilations are 1, 2, 4, …: an output sees 1 + 2 (kernel − 1)(2^levels − 1)
    tokens."""
    kernel: Annotated[int, Field(ge=2, le=64)] = 3
    dropout: Rate = 0.1
