"""What the tests of all models need to know of each family; a file a family in `families/`."""

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator import models
from orchestrator.models.registry import FAMILIES as REGISTERED


@dataclass(frozen=True)
class Case:
    """A model small enough to run: four images of `size` pixels in well under a second.

    Of a model that reads texts, `size` is their length in tokens.

    Attributes:
        slim: options that make it small.
        open: options under which every parameter of a fresh model gets a gradient.
        random: options that make training draw random numbers.
        calm: options under which it draws none.
        lr: plain SGD with it lowers the loss of a fixed batch to 0.6 of its start in 20 steps.
        keeps_format: whether channels-last images leave the stem channels-last.
    """

    name: str
    slim: dict[str, Any]
    open: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=lambda: {"dropout": 0.3})
    calm: dict[str, Any] = field(default_factory=lambda: {"dropout": 0.0})
    size: int = 28
    lr: float = 0.05
    keeps_format: bool = True


@dataclass(frozen=True)
class Numbers:
    """A model whose outputs are compared with its reference's, at the same weights.

    Attributes:
        ours, theirs: options that switch off what is random, and what makes them equal.
        size: side of the images; both get it where the reference asks for an image size.
    """

    name: str
    ours: dict[str, Any] = field(default_factory=lambda: {"dropout": 0.0})
    theirs: dict[str, Any] = field(default_factory=dict)
    size: int = 64


def _families():
    for path in sorted(Path(__file__).with_name("families").glob("*.py")):
        yield importlib.import_module(f"tests.zoo.families.{path.stem}")


FAMILIES = list(_families())
CASES = {case.name: case for family in FAMILIES for case in family.CASES}
NUMBERS = {numbers.name: numbers for family in FAMILIES for numbers in family.NUMBERS}
FIRST = [family.CASES[0].name for family in FAMILIES]
"""One of each family, for what takes seconds."""


def _variants():
    """As narrow as a case of their family, but as deep as they are: the graph is the variant's."""
    for family in FAMILIES:
        for name in REGISTERED[family.__name__.rpartition(".")[2]]:
            if name in CASES:
                continue
            for case in family.CASES:
                slim = {k: v for k, v in case.slim.items() if k not in ("depth", "depths")}
                if slim.keys() <= models.options_of(name).keys():
                    yield name, replace(case, name=name, slim=slim)
                    break


VARIANTS = dict(_variants())
"""Cases of the models that have none of their own."""
