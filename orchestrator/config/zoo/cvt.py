"""Convolutional vision transformers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Seq, part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive

NAMES = ("cvt_13", "cvt_21")


@part("model", *NAMES, build=BUILD)
class CvT(Model):
    """Transformers with convolutions for tokens and projections (Wu et al., 2021)."""

    type: Literal["cvt_13", "cvt_21"]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` is 3×3 of stride 1; `auto` takes it up to 64 pixels."""
    pool: Literal["token", "mean"] = "token"
    """What the classifier gets: the class token, or the mean of all tokens."""
    head_dim: Positive | None = None
    """Channels of an attention head, of which groups have 1, 3 and 6; by default the variant's."""
    depths: Annotated[Seq[Positive], Field(min_length=3, max_length=3)] | None = None
    """Blocks of each of the three groups; by default the variant's."""
    dropout: Rate = 0.0
    """After each group's embedding, after attention, and in the MLPs."""
    attention_dropout: Rate = 0.0
    drop_path: Rate = 0.1
    """Stochastic depth at the last block, growing linearly from 0 at the last group's first."""
