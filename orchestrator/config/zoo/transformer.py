"""The transformer for text, and the options that those of other families share with it."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.config.numbers import Positive


class TextTransformer(Model):
    """What transformers for text have."""

    takes: ClassVar[str] = "tokens"

    hidden: Positive | None = None
    """Features between a block's two linear layers; by default 4 `dim`."""
    dropout: Rate = 0.1


class FreeTransformer(TextTransformer):
    """One of any size."""

    dim: Positive = 128
    """Features of a token."""
    depth: Positive = 2
    """Blocks."""
    heads: Positive = 4
    """Of the attention; they divide `dim`."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_heads(self.heads, self.dim)
        return self


class OneText(TextTransformer):
    """What those have that read one text."""

    positions: Literal["learned", "sinusoidal", "rotary", "relative"] = "learned"
    """`rotary` and `relative` need full attention."""
    attention: Literal["full", "local", "sparse", "linear"] = "full"
    """Which tokens one sees: all; those near; near blocks and a few; a sum without softmax."""
    window: Positive = 32
    """Tokens: how far one sees if `local`, how many are a block if `sparse`."""

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        if self.attention != "full" and self.positions in ("rotary", "relative"):
            raise ValueError(
                f"{self.positions} positions are of full attention, but attention is "
                f"{self.attention}; take learned or sinusoidal positions, or attention: full"
            )
        return self


class PublishedTransformer(OneText):
    """One of a published size, which may be changed."""

    dim: Positive | None = None
    """Features of a token; by default the variant's."""
    depth: Positive | None = None
    """Blocks; by default the variant's."""
    heads: Positive | None = None
    """Of the attention; they divide `dim`. By default the variant's."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim and self.heads:
            check_heads(self.heads, self.dim)
        return self


def check_heads(heads: int, dim: int) -> None:
    """Refuses heads that do not divide the features.

    Raises:
        ValueError: with both.
    """
    if dim % heads:
        raise ValueError(f"heads must divide dim, but got heads={heads}, dim={dim}")


@part("model", "transformer", build=BUILD)
class Transformer(FreeTransformer):
    """Encoder and decoder (Vaswani et al., 2017): a text answers a text."""

    texts: ClassVar[int] = 2

    type: Literal["transformer"] = "transformer"
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"
    norm_first: bool = False
    """Norms in front of the branches, which learns without a warm-up."""
    tied: bool = True
    """The head is the embedding's matrix."""
