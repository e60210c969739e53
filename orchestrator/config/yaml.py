"""Reads YAML with the scalars of YAML 1.2, a line for every key, and no surprises.

`1e-3` is a number; `no`, `on` and `12:30` are text; only `true` and `false` are booleans. What a
configuration never needs is refused: tags, several documents, duplicate or non-text keys, NaN,
aliases that hold themselves or expand without end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from orchestrator.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indices from the top."""

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000
MAX_DEPTH = 40

_NULL = re.compile(r"(?:~|null|Null|NULL)?")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

_SYNTAX = (
    ("'\\t'", "a tab can't stand here; indent with spaces"),
    ("mapping values are not allowed", "a second ': ' in one value; put text with ': ' in quotes"),
    ("could not find expected ':'", "a key without ':'; write `key: value`"),
    ("but found '<block mapping start>'", "the indentation does not match the lines above"),
    ("but found '<block sequence start>'", "the indentation does not match the lines above"),
    ("but found '-'", "the indentation of '-' does not match the lines above"),
    ("but found '?'", "the indentation does not match the lines above"),
    ("but got '<stream end>'", "a bracket or brace is not closed"),
    ("but found '<stream end>'", "the text ends before its value is complete"),
    ("end of stream", "a quote is not closed"),
    ("but found another document", "several documents; a file holds one, so remove '---'"),
    ("found undefined alias", "an alias (*) without its anchor (&); put the text in quotes"),
    ("found duplicate anchor", "an anchor (&) is defined twice"),
    ("cannot start any token", "a value can't start with this character; put it in quotes"),
)


@dataclass
class Document:
    """A file's content and where each value stands.

    Attributes:
        values: mappings, lists, str, int, float, bool and None.
        places: ``file:line``, or the override, for each key path.
    """

    values: Any
    places: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """The place of `path`, or of the nearest section around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return ""

    def forget(self, path: KeyPath) -> None:
        """Drops the places of `path` and of all below it."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]


def read_yaml(path: Path) -> Document:
    """Reads a file whose top is a mapping.

    Raises:
        ConfigError: naming the file, the line and what is wrong.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError([Problem(f"can't be read: {why}", where=name)]) from None
    if len(content) > MAX_BYTES:
        limit = f"{MAX_BYTES // 1024} KiB"
        raise ConfigError([Problem(f"is larger than {limit}, too large for a file", where=name)])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problem = Problem("is not UTF-8; save the file as UTF-8", where=f"{name}:{line}")
        raise ConfigError([problem]) from None
    document = parse_yaml(text, name)
    if document.values is None:
        raise ConfigError([Problem("the file is empty", where=name)])
    if not isinstance(document.values, dict):
        message = "the top must be a mapping, such as `name: my-run`"
        raise ConfigError([Problem(message, where=document.where(()))])
    return document


def parse_yaml(text: str, name: str, lines: bool = True) -> Document:
    """Parses one YAML document.

    Args:
        text: the document.
        name: what places are called.
        lines: whether places carry a line; an override's do not.

    Raises:
        ConfigError: naming the place and what is wrong.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, text, name, lines)]) from None
    except (ValueError, OverflowError) as error:
        # PyYAML lets these through for escapes beyond Unicode and for odd %YAML versions.
        raise ConfigError([Problem(f"is not YAML: {error}", where=name)]) from None
    reading = _Reading(name, lines)
    values = None if node is None else reading.value(node, ())
    if reading.problems:
        raise ConfigError(reading.problems)
    return Document(values, reading.places)


def scalar(text: str) -> str | int | float | bool | None:
    """Resolves a plain scalar as YAML 1.2's core schema does.

    Raises:
        ValueError: for NaN, infinity and whole numbers beyond 64 bits.
    """
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return bool(match[1])
    if _INT.fullmatch(text):
        return _whole(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a number that can be used; give a finite one")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{text} is too large for a number")
        return number
    return text


def _whole(text: str) -> int:
    digits = text.lstrip("+-")
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    number = int(text, base) if len(digits) <= 64 else 2**63
    if not -(2**63) <= number < 2**63:
        shown = text if len(text) <= 24 else text[:20] + "…"
        raise ValueError(f"{shown} is too large for a whole number")
    return number


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's composer without its scalars, with a limit of depth and without tags."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag:
            short = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(
                problem=f"tags such as {short!r} are not read; remove it",
                problem_mark=event.start_mark,
            )
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reading:
    """Turns nodes into values; collects places and problems on the way."""

    def __init__(self, name: str, lines: bool) -> None:
        self.name, self.lines = name, lines
        self.places: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self._count = 0
        self._open: set[int] = set()

    def value(self, node: Node, path: KeyPath) -> Any:
        self.places.setdefault(path, self._where(node))
        self._count += 1
        if self._count > MAX_VALUES:
            if self._count == MAX_VALUES + 1:
                self._report(node, path, f"more than {MAX_VALUES} values, counting aliases")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._report(node, path, "an alias (*) can't hold itself")
            return None
        self._open.add(id(node))
        found = (
            self._mapping(node, path) if isinstance(node, MappingNode) else self._list(node, path)
        )
        self._open.discard(id(node))
        return found

    def _list(self, node: Node, path: KeyPath) -> list[Any]:
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        if any("\ud800" <= char <= "\udfff" for char in node.value):
            self._report(node, path, "half of a surrogate pair is not text")
            return None
        if node.style is not None:
            return node.value
        try:
            return scalar(node.value)
        except ValueError as error:
            self._report(node, path, str(error))
            return None

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in found:
                line = first[key].start_mark.line + 1
                self._report(key_node, (*path, key), f"given twice; first on line {line}")
                continue
            first[key] = key_node
            self.places[(*path, key)] = self._where(key_node)
            found[key] = self.value(value_node, (*path, key))
        return found

    def _key(self, node: Node, path: KeyPath) -> str | None:
        key = self._scalar(node, path) if isinstance(node, ScalarNode) else node
        if not isinstance(key, str):
            shown = repr(node.value) if isinstance(node, ScalarNode) else "a list or mapping"
            self._report(node, path, f"keys are text, but got {shown}; put it in quotes")
            return None
        if key == "<<":
            self._report(node, path, "`<<` is not part of YAML 1.2; use `extends: file.yaml`")
            return None
        return key

    def _where(self, node: Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name

    def _report(self, node: Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(message, dotted(path), self._where(node)))


def dotted(path: KeyPath) -> str:
    """A key path as it is written in overrides: `data.augment.0.p`."""
    return ".".join(map(str, path))


def _syntax_problem(error: yaml.YAMLError, text: str, name: str, lines: bool) -> Problem:
    """Says what is wrong in words of the file rather than of the parser."""
    if isinstance(error, ReaderError):
        before = text[: int(error.position)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        where = f"{name}:{line}:{column}" if lines else name
        return Problem(
            f"the character U+{int(error.character):04X} can't stand in a file", "", where
        )
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark and lines else name
    said = ", ".join(
        part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part
    )
    for sign, message in _SYNTAX:
        if sign in said:
            return Problem(message, where=where)
    return Problem(said or "is not YAML", where=where)
