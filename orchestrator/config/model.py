"""The `model:` section: what every network has, and networks that are imported by name.

The zoo's own sections are in `config/zoo/`, a file a family, so that a file is checked without
loading torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.config.base import Part, Seq, part
from orchestrator.config.training import Positive

BUILD = "orchestrator.networks:build_zoo_model"
"""What builds every model of the zoo."""

Multiplier = Annotated[float, Field(gt=0, le=8)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Model(Part):
    """A network. Its class count and input channels come from the data."""

    weights: str | None = None
    """A `.safetensors` or `.pth` file; a head of another class count is replaced."""
    freeze: Seq[str] = ()
    """Patterns of parameter names that do not learn, such as `features.0.*`."""


@part("model", "import", build="orchestrator.networks:build_imported_model")
class ImportedModel(Model):
    """Any `torch.nn.Module` that can be imported."""

    type: Literal["import"] = "import"
    target: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:Class`; it is called with `args`."""
    args: dict[str, Any] = Field(default_factory=dict)
    input_size: Positive | None = None
