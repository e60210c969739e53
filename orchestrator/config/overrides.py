"""Dotted changes of a file's values: `optimizer.lr=3e-4 model.type=resnet18`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.base import Config, Part
from orchestrator.config.dump import plain
from orchestrator.config.keys import (
    DOTTED_MAPPINGS,
    Choice,
    Items,
    Section,
    default_at,
    follow,
    value_at,
)
from orchestrator.config.yaml import Document, KeyPath, dotted, parse_yaml
from orchestrator.errors import ConfigError, Problem


@dataclass(frozen=True)
class Change:
    """One value to set.

    Attributes:
        key: dotted path; numbers are list indices.
        value: mappings, lists and scalars, as read from YAML.
        where: what a problem with it names as its place.
    """

    key: str
    value: Any
    where: str = ""


def parse_override(text: str) -> Change:
    """Reads `key=value`; the value is YAML, so `[1, 2]` and `{type: flip}` work too.

    Raises:
        ConfigError: for anything else.
    """
    where = f"override {text!r}"
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not all(part.strip() for part in key.split(".")):
        raise ConfigError([Problem("write it as key=value, such as train.for=3", where=where)])
    return Change(key.strip(), parse_yaml(value, where, lines=False).values, where)


def apply_changes(document: Document, changes: Sequence[Change]) -> list[Problem]:
    """Sets every change in the document, in place; answers what could not be set.

    A new `type` drops the keys that the new part does not know, except those that a change
    gives: a mistake in what was just asked for must be heard of.
    """
    given = {change.key for change in changes}
    problems = []
    for change in changes:
        try:
            _apply(document, change, given)
        except LookupError as error:
            problems.append(Problem(str(error.args[0]), change.key, change.where))
    return problems


def _apply(document: Document, change: Change, given: set[str]) -> None:
    values, parts, path = document.values, change.key.split("."), KeyPath()
    while True:
        key, parts = _next_key(values, path, parts)
        parent, path = value_at(values, path), (*path, key)
        if not parts:
            break
        _open_section(document, parent, path, change.where)
    if key == "type" and isinstance(parent, dict) and parent.get("type") != change.value:
        _drop_unknown(document, path[:-1], change.value, given)
    _put(parent, path, change.value)
    document.forget(path)
    document.places[path] = change.where


def _next_key(values: Any, path: KeyPath, parts: list[str]) -> tuple[str | int, list[str]]:
    """The first key of the dotted rest, minding keys that hold dots and list indices."""
    current, shape, length = value_at(values, path), follow(values, path), 1
    if path in DOTTED_MAPPINGS:
        length = _longest(current, parts) or len(parts)
    elif isinstance(shape, Items):
        length = _longest(current, parts) or 1
    if isinstance(current, list) and parts[0].isascii() and parts[0].isdigit():
        return int(parts[0][:6]), parts[1:]
    return ".".join(parts[:length]), parts[length:]


def _longest(current: Any, parts: list[str]) -> int:
    """How many parts make up the longest key that the mapping has."""
    if not isinstance(current, dict):
        return 0
    return next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in current), 0)


def _open_section(document: Document, parent: Any, path: KeyPath, where: str) -> None:
    """Makes sure that a section is there; one that the file leaves out begins as its default."""
    current = value_at(document.values, path)
    if current is None:
        _put(parent, path, _beginning(document.values, path))
        document.places[path] = where
    elif not isinstance(current, dict | list):
        raise LookupError(f"{dotted(path)} is {current!r}, which has no keys of its own")


def _beginning(values: Any, path: KeyPath) -> Any:
    default = default_at(values, path)
    if isinstance(default, Part):
        return {"type": default.type}
    if isinstance(default, tuple):
        return [plain(item) if isinstance(item, Config) else item for item in default]
    shape = follow(values, path)
    return [] if isinstance(shape, Items) and not shape.mapping else {}


def _put(parent: Any, path: KeyPath, value: Any) -> None:
    key = path[-1]
    if isinstance(parent, dict):
        parent[str(key)] = value
        return
    name = dotted(path[:-1])
    if not isinstance(key, int):
        raise LookupError(f"{name} is a list; write {name}.0 for its first item")
    if key >= len(parent):
        last = f"the last is {name}.{len(parent) - 1}" if parent else "it is empty"
        raise LookupError(f"{name} has no item {key}; {last}")
    parent[key] = value


def _drop_unknown(document: Document, path: KeyPath, name: Any, given: set[str]) -> None:
    """Removes the keys that the part's new type does not know."""
    shape = follow(document.values, path)
    section = shape.section({"type": name}) if isinstance(shape, Choice) else None
    if not isinstance(section, Section):
        return
    values = value_at(document.values, path)
    for key in set(values) - set(section.keys()):
        here = (*path, key)
        mine = dotted(here)
        if not any(other == mine or other.startswith(mine + ".") for other in given):
            del values[key]
            document.forget(here)
