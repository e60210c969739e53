"""What may stand at a key path: follows the section classes along the values of a file."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

from pydantic.fields import FieldInfo

from orchestrator.config.base import Config, OneOf, Part, entries
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.yaml import KeyPath

DOTTED_MAPPINGS: tuple[KeyPath, ...] = (("sweep", "space"), ("distill", "set"))
"""Mappings whose keys are themselves dotted paths of the file."""


@dataclass(frozen=True)
class Section:
    """A section with fixed keys."""

    config: type[Config]

    def keys(self) -> list[str]:
        """Every key as the file spells it."""
        return list(_fields(self.config))


@dataclass(frozen=True)
class Choice:
    """A part that is picked by its `type`."""

    kind: str

    def section(self, values: Any) -> Section | None:
        """The section of the type that `values` picks; None for an unknown one."""
        name = values.get("type") if isinstance(values, Mapping) else None
        found = {entry.name: entry.config for entry in entries(self.kind)}
        return Section(found[name]) if isinstance(name, str) and name in found else None


@dataclass(frozen=True)
class Items:
    """A list, or a mapping with free keys; `item` is what each value may be."""

    item: Shape
    mapping: bool


@dataclass(frozen=True)
class Leaf:
    """A plain value, or one of any shape."""

    any: bool = False


Shape = Section | Choice | Items | Leaf
ROOT = Section(ExperimentConfig)


def resolved(shape: Shape, values: Any) -> Shape:
    """The chosen part's section in place of the choice, where `values` pick one."""
    if isinstance(shape, Choice):
        return shape.section(values) or Leaf(any=True)
    return shape


def step(shape: Shape, values: Any, key: str | int) -> Shape | None:
    """The shape below one key, or None where no such key may stand."""
    shape = resolved(shape, values)
    if isinstance(shape, Section):
        field = _fields(shape.config).get(str(key))
        return _shape_of(field.annotation, field.metadata) if field else None
    if isinstance(shape, Items):
        return shape.item if isinstance(key, str) == shape.mapping else None
    return shape if isinstance(shape, Leaf) and shape.any else None


def follow(values: Any, path: KeyPath) -> Shape | None:
    """The shape at a key path of a file, or None where no such key may stand."""
    shape: Shape | None = ROOT
    for key in path:
        if shape is None:
            return None
        shape = step(shape, values, key)
        values = below(values, key)
    return shape


def below(values: Any, key: str | int) -> Any:
    """One level down; None where there is nothing."""
    if isinstance(values, Mapping):
        return values.get(key)
    if isinstance(values, list) and isinstance(key, int) and 0 <= key < len(values):
        return values[key]
    return None


def value_at(values: Any, path: KeyPath) -> Any:
    """The value at a key path; None where there is nothing."""
    for key in path:
        values = below(values, key)
    return values


def default_at(values: Any, path: KeyPath) -> Any:
    """The default of a key path of a file, None where there is none."""
    found = resolved(follow(values, path[:-1]) or Leaf(), value_at(values, path[:-1]))
    field = _fields(found.config).get(str(path[-1])) if isinstance(found, Section) else None
    return (
        field.get_default(call_default_factory=True) if field and not field.is_required() else None
    )


def every_key(values: Any, shape: Shape = ROOT, prefix: str = "") -> Iterator[str]:
    """The dotted path of every key that may stand in a file, given its choices and defaults."""
    shape = resolved(shape, values)
    if not isinstance(shape, Section):
        return
    for key, field in _fields(shape.config).items():
        yield f"{prefix}{key}"
        value = below(values, key)
        if value is None and isinstance(field.default, Part):
            value = {"type": field.default.type}
        lower = _shape_of(field.annotation, field.metadata)
        yield from every_key(value, lower, f"{prefix}{key}.")


def _fields(config: type[Config]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in config.model_fields.items()}


def _shape_of(annotation: Any, metadata: Any = ()) -> Shape:
    """Reads a type annotation as far as it says which keys may stand below."""
    for mark in metadata:
        if isinstance(mark, OneOf):
            return Choice(mark.kind)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _shape_of(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        shapes = [_shape_of(argument) for argument in arguments]
        return next((shape for shape in shapes if shape != Leaf()), Leaf())
    if origin is dict:
        return Items(_shape_of(arguments[1]), mapping=True)
    if origin in (tuple, list):
        return Items(_shape_of(arguments[0]), mapping=False)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return Section(annotation)
    return Leaf(any=annotation is Any)


def known_keys(values: Any, path: KeyPath) -> list[str]:
    """The keys that may stand in the section at a key path; none where keys are free."""
    shape = follow(values, path)
    if shape is None:
        return []
    shape = resolved(shape, value_at(values, path))
    return shape.keys() if isinstance(shape, Section) else []
