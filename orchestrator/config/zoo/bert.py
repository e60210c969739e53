"""Encoders of text, as BERT's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import part
from orchestrator.config.model import BUILD
from orchestrator.config.zoo.transformer import FreeTransformer, OneText, PublishedTransformer

NAMES = ("bert_base", "bert_large")


@part("model", "transformer_encoder", build=BUILD)
class Encoder(OneText, FreeTransformer):
    """BERT-like (Devlin et al., 2019): every token sees the whole text; for classification."""

    type: Literal["transformer_encoder"] = "transformer_encoder"
    token_types: Annotated[int, Field(ge=0)] = 0
    """Kinds of tokens that are told apart; 2 in BERT, whose weights have them."""


@part("model", *NAMES, build=BUILD)
class Bert(PublishedTransformer):
    """BERT (Devlin et al., 2019); its weights ask for the vocabulary that they were trained on."""

    type: Literal["bert_base", "bert_large"]
    token_types: Annotated[int, Field(ge=0)] = 2
    """Kinds of tokens that are told apart, as the two texts of a pair."""
