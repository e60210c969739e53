"""Decoders of text, as GPT-2."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD
from orchestrator.config.zoo.transformer import FreeTransformer, OneText, PublishedTransformer

NAMES = ("gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl")


@part("model", "transformer_decoder", build=BUILD)
class Decoder(OneText, FreeTransformer):
    """GPT-like (Radford et al., 2019): no token sees a later one."""

    type: Literal["transformer_decoder"] = "transformer_decoder"
    tied: bool = False
    """The head is the embedding's matrix; only for a language model."""


@part("model", *NAMES, build=BUILD)
class Gpt2(PublishedTransformer):
    """GPT-2 (Radford et al., 2019); its weights ask for the vocabulary they were trained on."""

    type: Literal["gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl"]
    tied: bool | None = None
    """The head is the embedding's matrix; by default for a language model, and for nothing else."""
