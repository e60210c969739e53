"""Pyramid vision transformers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Seq, part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive

NAMES = ("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2")


@part("model", *NAMES, build=BUILD)
class PvtV2(Model):
    """Transformers on maps that shrink, with reduced keys and values (Wang et al., 2022)."""

    type: Literal["pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2"]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1 and half the reductions; `auto` takes it up to 64 pixels."""
    head_dim: Positive | None = None
    """Channels of an attention head, of which groups have 1, 2, 5 and 8; by default the
    variant's."""
    depths: Annotated[Seq[Positive], Field(min_length=4, max_length=4)] | None = None
    """Blocks of each of the four groups; by default the variant's."""
    dropout: Rate = 0.0
    """Before the classifier."""
    drop_path: Rate = 0.1
    """Stochastic depth at the last block, growing linearly from 0 at the first."""
