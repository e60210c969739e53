"""The `model:` section: what every network has, and networks that are imported by name.

The zoo's own sections are in `config/zoo/`, a file a family, so that a file is checked without
loading torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from orchestrator.config.base import Part, Seq, part
from orchestrator.config.numbers import Positive

BUILD = "orchestrator.networks:build_zoo_model"
"""What builds every model of the zoo."""

Multiplier = Annotated[float, Field(gt=0, le=8)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Model(Part):
    """A network. Its class count and input channels come from the data.

    Attributes:
        takes: what it reads, `images` or `tokens`; empty where that is not known.
        texts: of tokens: 2 where it reads a text and the beginning of its answer.
    """

    takes: ClassVar[str] = "images"
    texts: ClassVar[int] = 1

    weights: str | None = None
    """A `.safetensors` or `.pth` file; a head of another class count is replaced."""
    freeze: Seq[str] = ()
    """Patterns of parameter names, such as `features.0.*`, or stages that do not learn."""


def misfit(model: Part, gives: str) -> str | None:
    """Why a network can't read what a source gives; None where it can, or that is not known."""
    takes = getattr(model, "takes", "")
    if not takes or not gives or takes == gives:
        return None
    fitting = {"images": "resnet18 or efficientnet_small", "tokens": "lstm or transformer_encoder"}
    return (
        f"{model.type} reads {takes}, but data.source gives {gives}; choose a network for {gives}, "
        f"such as {fitting.get(gives, 'a plugin’s')}, or another source"
    )


@part("model", "import", build="orchestrator.networks:build_imported_model")
class ImportedModel(Model):
    """Any `torch.nn.Module` that can be imported."""

    takes: ClassVar[str] = ""

    type: Literal["import"] = "import"
    target: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:Class`; it is called with `args`."""
    args: dict[str, Any] = Field(default_factory=dict)
    input_size: Positive | None = None
