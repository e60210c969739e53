"""Sections of the file. No torch here: files are checked without it."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Part, part
from orchestrator.config.data import Source
from orchestrator.config.model import Model
from orchestrator.config.optimizers import OptimizerPart


@part("model", "example_mlp", build="example_parts.torch_parts:mlp")
class Mlp(Model):
    """A perceptron with one hidden layer."""

    type: Literal["example_mlp"] = "example_mlp"
    hidden: Annotated[int, Field(ge=1)] = 32
    """Units of the hidden layer."""


@part("source", "example_stripes", build="example_parts.stripes:load")
class Stripes(Source):
    """Images of horizontal or vertical stripes."""

    type: Literal["example_stripes"] = "example_stripes"
    path: str | None = None


@part("loss", "example_margin", build="example_parts.torch_parts:margin")
class Margin(Part):
    """The multi-class hinge loss."""

    type: Literal["example_margin"] = "example_margin"
    margin: Annotated[float, Field(gt=0)] = 1.0


@part("optimizer", "example_lion", build="example_parts.torch_parts:sign_descent")
class SignDescent(OptimizerPart):
    """Steps of equal length along the gradient's sign."""

    type: Literal["example_lion"] = "example_lion"
