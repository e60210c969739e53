"""Transformers for text."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive


class _Transformer(Model):
    """What transformers for text have."""

    takes: ClassVar[str] = "tokens"

    dim: Positive = 128
    """Features of a token."""
    depth: Positive = 2
    """Blocks."""
    heads: Positive = 4
    """Of the attention; they divide `dim`."""
    hidden: Positive | None = None
    """Features between a block's two linear layers; by default 4 `dim`."""
    dropout: Rate = 0.1

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim, but got heads={self.heads}, dim={self.dim}")
        return self


@part("model", "transformer_encoder", build=BUILD)
class Encoder(_Transformer):
    """BERT-like (Devlin et al., 2019): every token sees the whole text; for classification."""

    type: Literal["transformer_encoder"] = "transformer_encoder"
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"


@part("model", "transformer_decoder", build=BUILD)
class Decoder(_Transformer):
    """GPT-like (Radford et al., 2019): no token sees a later one."""

    type: Literal["transformer_decoder"] = "transformer_decoder"
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    tied: bool = False
    """The head is the embedding's matrix; only for a language model."""


@part("model", "transformer", build=BUILD)
class Transformer(_Transformer):
    """Encoder and decoder (Vaswani et al., 2017): a text answers a text."""

    texts: ClassVar[int] = 2

    type: Literal["transformer"] = "transformer"
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"
    norm_first: bool = False
    """Norms in front of the branches, which learns without a warm-up."""
    tied: bool = True
    """The head is the embedding's matrix."""
