"""Swin transformers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import Seq, part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive

NAMES = ("swin_tiny", "swin_small", "swin_base")


@part("model", *NAMES, build=BUILD)
class Swin(Model):
    """Transformers with attention in shifted windows (Liu et al., 2021)."""

    type: Literal["swin_tiny", "swin_small", "swin_base"]
    patch: Literal["auto"] | Positive = "auto"
    """Side of a patch in pixels, which divides both sides of the image; `auto` is 2 up to 64
    pixels, else 4."""
    window: Literal["auto"] | Positive = "auto"
    """Side of a window in patches; `auto` is 7, and up to 64 pixels the one of 7 and 4 that divides
    the grid of patches, but no larger than a group's map."""
    embed_dim: Positive | None = None
    """Channels of the first group, a multiple of `head_dim`; by default the variant's."""
    depths: Annotated[Seq[Positive], Field(min_length=1, max_length=6)] | None = None
    """Blocks of each group; by default the variant's."""
    head_dim: Positive = 32
    """Channels of an attention head."""
    dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    drop_path: Rate | None = None
    """Stochastic depth at the last block, growing linearly from 0 at the first; by default the
    variant's."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.embed_dim and self.embed_dim % self.head_dim:
            raise ValueError(
                f"`head_dim` must divide `embed_dim`, but got head_dim {self.head_dim} and "
                f"embed_dim {self.embed_dim}; change one of them"
            )
        return self
