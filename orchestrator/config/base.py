"""Configuration models' common ground: a strict frozen base, and parts picked by their `type`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from orchestrator.errors import UnknownNameError, suggest

T = TypeVar("T")
Seq = Annotated[tuple[T, ...], Strict(False)]
"""A YAML sequence, kept as a tuple because configurations are frozen."""


class Config(BaseModel):
    """A section of the file: frozen, no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )


class Part(Config):
    """A choice that is picked by its `type`: an optimizer, a model, a data source, …"""

    type: str


PartT = TypeVar("PartT", bound=Part)

KINDS = (
    "source",
    "loader",
    "augmentation",
    "model",
    "task",
    "loss",
    "soft_loss",
    "optimizer",
    "schedule",
    "engine",
    "distribution",
    "sampler",
    "scheduler",
    "ensemble",
    "traffic",
)


@dataclass(frozen=True)
class Entry:
    """What a registry knows of one name.

    Attributes:
        kind: one of `KINDS`.
        name: the value of `type` in the file.
        config: the section's model.
        target: ``package.module:callable``, or the callable, that `build` calls with the section.
    """

    kind: str
    name: str
    config: type[Part]
    target: str | Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the section's docstring."""
        return (self.config.__doc__ or "").strip().split("\n")[0]


_ENTRIES: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def part(
    kind: str, *names: str, build: str | Callable[..., Any]
) -> Callable[[type[PartT]], type[PartT]]:
    """Registers a section under one or more names. Plugins use this as orch itself does.

    Args:
        kind: one of `KINDS`.
        names: what the user writes behind `type:`.
        build: ``package.module:callable`` (imported when first needed, so that reading a file
            stays quick) or a callable. It is called as ``build(config, **context)``; what the
            context holds is written beside each kind's own `build_…` function.

    Raises:
        ValueError: for an unknown kind, or for a name that another section has taken.
    """
    if kind not in _ENTRIES:
        raise ValueError(f"unknown kind {kind!r}; {suggest(kind, KINDS)}")

    def register(config: type[PartT]) -> type[PartT]:
        for name in names:
            taken = _ENTRIES[kind].get(name)
            if taken and (taken.config.__module__, taken.config.__qualname__) != (
                config.__module__,
                config.__qualname__,
            ):
                raise ValueError(
                    f"{kind} {name!r} is registered by {taken.config.__module__} already; "
                    f"choose another name in {config.__module__}"
                )
            _ENTRIES[kind][name] = Entry(kind, name, config, build)
        return config

    return register


def names(kind: str) -> list[str]:
    """Every registered name of a kind, sorted."""
    return sorted(_ENTRIES[kind])


def entries(kind: str) -> Iterator[Entry]:
    """Every entry of a kind, by name."""
    yield from (_ENTRIES[kind][name] for name in names(kind))


def find(kind: str, name: str) -> Entry:
    """Looks a name up.

    Raises:
        UnknownNameError: naming the nearest right choices.
    """
    try:
        return _ENTRIES[kind][name]
    except (KeyError, TypeError):
        raise UnknownNameError(kind, name, names(kind)) from None


def build(kind: str, config: Part, **context: Any) -> Any:
    """Calls what a section was registered with, as ``target(config, **context)``."""
    target = find(kind, config.type).target
    return (resolve(target) if isinstance(target, str) else target)(config, **context)


def resolve(target: str) -> Any:
    """Imports ``package.module:attribute``.

    Raises:
        ImportError: if the module or the attribute is not there.
    """
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ImportError(f"{module} has no attribute {attribute!r}")
        found = getattr(found, name)
    return found


class OneOf:
    """Marks a field as a part of one kind: validated by the section registered for its `type`.

    Looked up at validation time rather than fixed in the class, so that a plugin's parts join
    the schema the moment they are registered.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def _validate(self, value: Any) -> Part:
        if isinstance(value, Part):
            entry = _ENTRIES[self.kind].get(value.type)
            if entry and isinstance(value, entry.config):
                return value
            value = value.model_dump()
        if not isinstance(value, dict):
            raise PydanticCustomError(
                "part_type",
                "should be a mapping with a `type`, such as {example}",
                {"example": "{type: " + (names(self.kind) or ["…"])[0] + "}"},
            )
        name = value.get("type")
        if not isinstance(name, str) or name not in _ENTRIES[self.kind]:
            problem = (
                f"`type` is missing; {suggest('', names(self.kind))}"
                if name is None
                else str(UnknownNameError(self.kind, name, names(self.kind)))
            )
            raise ValidationError.from_exception_data(
                self.kind,
                [
                    {
                        "type": PydanticCustomError("unknown_part", "{why}", {"why": problem}),
                        "loc": ("type",),
                        "input": name,
                    }
                ],
            )
        return _ENTRIES[self.kind][name].config.model_validate(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.model_dump(mode="json")
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        sections: dict[type[Part], list[str]] = {}
        for entry in entries(self.kind):
            sections.setdefault(entry.config, []).append(entry.name)
        choices = []
        for config, known in sections.items():
            choice = handler(config.__pydantic_core_schema__)
            section = handler.resolve_ref_schema(choice)
            section["properties"]["type"] = {"enum": known, "type": "string"}
            section["required"] = ["type", *(k for k in section.get("required", ()) if k != "type")]
            choices.append(choice)
        return {"oneOf": choices}
