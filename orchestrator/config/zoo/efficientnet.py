"""EfficientNets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import part
from orchestrator.config.model import BUILD, Model, Multiplier, Rate

NAMES = (
    *(f"efficientnet_b{n}" for n in range(8)),
    "efficientnet",
    "efficientnet_small",
)


@part("model", *NAMES, build=BUILD)
class EfficientNet(Model):
    """EfficientNet (Tan and Le, 2019), free compound scaling, and a small-image variant."""

    type: Literal[
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_b4",
        "efficientnet_b5",
        "efficientnet_b6",
        "efficientnet_b7",
        "efficientnet",
        "efficientnet_small",
    ]
    width: Multiplier | None = None
    """Multiplies the channels; by default the variant's."""
    depth: Multiplier | None = None
    """Multiplies the layers of every stage, rounded up; by default the variant's."""
    dropout: Rate | None = None
    drop_path: Rate | None = None
    """Stochastic depth at the last block, growing linearly from 0 at the first."""
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` has stride 1; `auto` takes it up to 64 pixels."""
    phi: Annotated[float, Field(ge=-20, le=20)] | None = None
    """Compound coefficient of `efficientnet`: depth 1.2^φ, width 1.1^φ; may be negative."""

    @model_validator(mode="after")
    def _phi_has_a_use(self) -> Self:
        if self.phi is not None and self.type != "efficientnet":
            raise ValueError(
                f"`phi` scales `type: efficientnet` alone, but type is {self.type}; "
                "use width and depth, or change the type"
            )
        return self
