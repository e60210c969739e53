"""Data-efficient image transformers."""

from __future__ import annotations

from typing import Literal

from orchestrator.config.base import part
from orchestrator.config.model import BUILD
from orchestrator.config.zoo.vit import PatchTransformer

NAMES = (
    "deit_tiny_patch16",
    "deit_small_patch16",
    "deit_base_patch16",
    "deit_tiny_distilled_patch16",
    "deit_small_distilled_patch16",
    "deit_base_distilled_patch16",
)


@part("model", *NAMES, build=BUILD)
class DeiT(PatchTransformer):
    """Vision transformers (Touvron et al., 2021) with stochastic depth of 0.1.

    The distilled ones have a token and a head more, for what a teacher says.
    """

    type: Literal[
        "deit_tiny_patch16",
        "deit_small_patch16",
        "deit_base_patch16",
        "deit_tiny_distilled_patch16",
        "deit_small_distilled_patch16",
        "deit_base_distilled_patch16",
    ]
