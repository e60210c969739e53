"""Vision transformers, and the options that those of other families share with them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive

NAMES = ("vit_tiny_patch16", "vit_small_patch16", "vit_base_patch16", "vit_large_patch16")


class PatchTransformer(Model):
    """Options of transformers whose tokens are an image's patches, all of one size."""

    patch: Literal["auto"] | Positive = "auto"
    """Side of a patch in pixels, which divides both sides of the image; `auto` is 4 up to 64
    pixels, else 16."""
    embed_dim: Positive | None = None
    """Channels of a token, a multiple of `heads`; by default the variant's."""
    depth: Positive | None = None
    """Blocks; by default the variant's."""
    heads: Positive | None = None
    """Attention heads; by default the variant's."""
    dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    drop_path: Rate | None = None
    """Stochastic depth at the last block, growing linearly from 0 at the first; by default the
    variant's."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.embed_dim and self.heads and self.embed_dim % self.heads:
            raise ValueError(
                f"`heads` must divide `embed_dim`, but got heads {self.heads} and "
                f"embed_dim {self.embed_dim}; change one of them"
            )
        return self


@part("model", *NAMES, build=BUILD)
class VisionTransformer(PatchTransformer):
    """Vision transformers (Dosovitskiy et al., 2021)."""

    type: Literal["vit_tiny_patch16", "vit_small_patch16", "vit_base_patch16", "vit_large_patch16"]
