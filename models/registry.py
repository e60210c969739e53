"""Models by name. A family's module is imported when one of its names is first asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FAMILIES: dict[str, tuple[str, ...]] = {
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "efficientnet": (
        *(f"efficientnet_b{n}" for n in range(8)),
        "efficientnet",
        "efficientnet_small",
    ),
}
"""Which module of this package registers which names."""


Factory = Callable[..., "nn.Module"]
"""Called with num_classes, in_channels and image_size; further keywords are the model's options."""


@dataclass(frozen=True)
class Published:
    """What is known of a model from outside, so that ours can be compared with it.

    Attributes:
        paper: authors and year, as in ``He et al., 2016``.
        parameters: of the reference checkpoint, with 1,000 classes and three channels.
        reference: whose state-dict names and shapes ours are, as in ``torchvision:resnet50`` or
            ``timm:deit_tiny_patch16_224``; empty where neither has the model.
        figure: the parameters that the paper itself states, as in ``25.6M``; empty where none.
        resolution: side, in pixels, of the images that the published weights were trained on.
    """

    paper: str
    parameters: int
    reference: str = ""
    figure: str = ""
    resolution: int = 224


_FACTORIES: dict[str, Factory] = {}
_PUBLISHED: dict[str, Published] = {}
_DATA_GIVEN = ("num_classes", "in_channels", "image_size")


def register(name: str, factory: Factory, published: Published | None = None) -> None:
    """Adds a model under a name, with what is published of it.

    Raises:
        ValueError: if the name is taken by another factory.
    """
    if _FACTORIES.get(name, factory) is not factory:
        raise ValueError(f"model {name!r} is registered already; choose another name")
    _FACTORIES[name] = factory
    if published is not None:
        _PUBLISHED[name] = published


def names() -> list[str]:
    """Every name that `create` takes, sorted. Imports no family."""
    return sorted({name for family in FAMILIES.values() for name in family} | set(_FACTORIES))


def options_of(name: str) -> dict[str, Any]:
    """A model's options with their defaults.

    Raises:
        ValueError: for an unknown name.
    """
    parameters = inspect.signature(_factory(name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in _DATA_GIVEN}


def published(name: str) -> Published | None:
    """What is published of a model; None for a model of our own.

    Raises:
        ValueError: for an unknown name.
    """
    _factory(name)
    return _PUBLISHED.get(name)


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    **options: Any,
) -> nn.Module:
    """Builds a model, freshly initialised from torch's global random state, in training mode.

    Args:
        name: one of `names`.
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels.
        options: the family's own, such as ``width``; `options_of` lists them.

    Raises:
        ValueError: for an unknown name, option, or value; the message says what would be right.
    """
    factory, known = _factory(name), options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; {_nearest(option, list(known))}")
    return factory(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options
    )


def _factory(name: str) -> Factory:
    if name not in _FACTORIES:
        module = next((m for m, known in FAMILIES.items() if name in known), None)
        if module is None:
            raise ValueError(f"unknown model {name!r}; {_nearest(name, names())}")
        importlib.import_module(f".{module}", __package__)
    return _FACTORIES[name]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return "choose from: " + (", ".join(known) or "nothing")
