"""A plain convolutional network whose layers are picked by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from orchestrator.config.base import Seq, part
from orchestrator.config.model import BUILD, Model, Rate
from orchestrator.errors import suggest

Width = Annotated[int, Field(ge=1, le=4096)]
NORM = Literal["batch", "layer", "group", "instance", "rms", "filter_response", "none"]
KERNELS = Literal["plain", "standardised", "weight_norm"]
ACTIVATION = Literal[
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "tlu",
    "elu",
    "selu",
    "sigmoid",
    "tanh",
    "silu",
    "mish",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "softplus",
    "identity",
]
GATE = Literal["none", "se", "eca", "cbam"]
DROPOUT = Literal["standard", "concrete", "dropconnect", "spatial", "dropblock", "path"]
INIT = Literal[
    "normal",
    "trunc_normal",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
]
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": get_args(NORM),
    "kernels": get_args(KERNELS),
    "activation": get_args(ACTIVATION),
    "gate": get_args(GATE),
    "dropout_kind": get_args(DROPOUT),
    "init": get_args(INIT),
}
"""What each option that names a layer takes."""


@part("model", "convnet", build=BUILD)
class ConvNet(Model):
    """A plain network of 3×3 convolutions for small images, every layer picked by name."""

    type: Literal["convnet"] = "convnet"
    widths: Annotated[Seq[Width], Field(min_length=1, max_length=8)] = (32, 64, 128)
    """Channels of each group; the image is halved between two groups."""
    depth: Annotated[int, Field(ge=1, le=64)] = 2
    """Convolutions in each group."""
    norm: NORM = "batch"
    """`layer` and `rms` are over each pixel's channels; `filter_response` goes with `tlu`."""
    kernels: KERNELS = "plain"
    """`standardised` is weight standardisation, `weight_norm` learns length and direction apart."""
    activation: ACTIVATION = "relu"
    gate: GATE = "none"
    """Attention over channels (`se`, `eca`), and over places too (`cbam`)."""
    dropout: Rate = 0.0
    """Rate of whichever kind; 0 turns it off."""
    dropout_kind: DROPOUT = "standard"
    """`standard` is before the classifier, `concrete` too, its rate learned from this one on
    (Gal et al., 2017); `dropconnect` is on the classifier's weights, `spatial` and `dropblock`
    behind every block, `path` on every residual branch."""
    block_size: Annotated[int, Field(ge=1, le=64)] = 5
    """Side, in pixels, of what `dropblock` drops."""
    dilation: Annotated[int, Field(ge=1, le=64)] = 1
    """Of every convolution but the first."""
    residual: bool = False
    """Adds a block's input to its output wherever the shape stays."""
    init: INIT = "kaiming_normal"
    zero_gamma: bool = False
    """Starts each residual branch at zero, so that a fresh block is its activation alone."""

    @field_validator(*CHOICES, mode="before")
    @classmethod
    def _name_is_known(cls, value: Any, info: ValidationInfo) -> Any:
        known = CHOICES[str(info.field_name)]
        if isinstance(value, str) and value not in known:
            raise ValueError(f"there is no {info.field_name} {value!r}; {suggest(value, known)}")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not self.residual and self.dropout_kind == "path":
            raise ValueError(
                "`dropout_kind: path` drops residual branches, but residual is false; "
                "set residual: true, or choose spatial or dropblock"
            )
        if not self.residual and self.zero_gamma:
            raise ValueError(
                "`zero_gamma` needs residual branches, but residual is false; "
                "set residual: true, or leave zero_gamma out"
            )
        if self.norm == "none" and self.zero_gamma:
            raise ValueError(
                "`zero_gamma` needs a norm with a scale, but norm is none; "
                "choose a norm, or leave zero_gamma out"
            )
        return self
