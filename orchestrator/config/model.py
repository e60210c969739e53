"""The `model:` section: one class a family, so that a file is checked without loading torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import Part, Seq, part
from orchestrator.config.training import Positive

_BUILD = "orchestrator.networks:build_zoo_model"

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
EFFICIENTNETS = (
    *(f"efficientnet_b{n}" for n in range(8)),
    "efficientnet",
    "efficientnet_small",
)
Multiplier = Annotated[float, Field(gt=0, le=8)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Model(Part):
    """A network. Its class count and input channels come from the data."""

    weights: str | None = None
    """A `.safetensors` or `.pth` file; a head of another class count is replaced."""
    freeze: Seq[str] = ()
    """Patterns of parameter names that do not learn, such as `features.0.*`."""


@part("model", *RESNETS, build=_BUILD)
class ResNet(Model):
    """Residual networks (He et al., 2016)."""

    type: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """`small` is a 3×3 stem of stride 1 without pooling; `auto` takes it up to 64 pixels."""
    width: Multiplier = 1.0
    """Multiplies the channels of every stage."""
    dropout: Rate = 0.0
    zero_init: bool = True
    """Starts each residual branch at zero, so that a fresh block is the identity."""


@part("model", *EFFICIENTNETS, build=_BUILD)
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


@part("model", "import", build="orchestrator.networks:build_imported_model")
class ImportedModel(Model):
    """Any `torch.nn.Module` that can be imported."""

    type: Literal["import"] = "import"
    target: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:Class`; it is called with `args`."""
    args: dict[str, Any] = Field(default_factory=dict)
    input_size: Positive | None = None
