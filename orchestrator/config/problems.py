"""Turns what pydantic finds into sentences about the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config.keys import every_key, follow, known_keys, value_at
from orchestrator.config.yaml import Document, KeyPath, dotted, scalar
from orchestrator.errors import Problem, suggest


@dataclass(frozen=True)
class Finding:
    """Something wrong at a key path, before its place is looked up.

    Attributes:
        path: the key that is wrong.
        message: the rule, the values, the way out.
        also: other keys that the rule reads.
    """

    path: KeyPath
    message: str
    also: tuple[KeyPath, ...] = ()

    def problem(self, document: Document) -> Problem:
        """With the place that the document knows."""
        return Problem(self.message, dotted(self.path), document.where(self.path))


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "finite_number": "finite",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
}
_COUNTS = {
    "too_short": "needs {min_length} or more items, got {actual_length}",
    "too_long": "takes {max_length} items at most, got more",
}
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$": (
        "at most 100 letters, digits, '.', '_' or '-', the first a letter or a digit"
    ),
    r"^[a-z_]+/[A-Za-z0-9_@.-]+$": "<split>/<metric>, such as val/accuracy",
    r"^[\w.]+:[\w.]+$": "'package.module:Class'",
}
_NUMBERS = {"int_type", "float_type", "int_from_float"}


def findings_of(error: ValidationError, values: Any) -> list[Finding]:
    """Every error as a finding; the branches of a union become one."""
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_path(detail, values), []).append(detail)
    return [
        Finding(path, message)
        for path, details in groups.items()
        for message in _messages(details, path, values)
    ]


def shown(value: Any) -> str:
    """A value as the file would spell it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[:1] * isinstance(value, str)


def _path(detail: ErrorDetails, values: Any) -> KeyPath:
    """The error's key path; pydantic's names for a union's branches are not keys."""
    path: KeyPath = ()
    for position, key in enumerate(detail["loc"]):
        here = value_at(values, path)
        is_last = position == len(detail["loc"]) - 1
        is_absent = is_last and detail["type"] in ("missing", "unknown_part")
        is_key = isinstance(here, Mapping) and key in here
        is_index = isinstance(here, list) and isinstance(key, int)
        if is_absent or is_key or is_index:
            path = (*path, key)
    return path


def _messages(details: list[ErrorDetails], path: KeyPath, values: Any) -> list[str]:
    wanted: dict[str, None] = {}
    messages: list[str] = []
    for detail in details:
        expected = _expected(detail)
        if expected is None:
            messages.append(_message(detail, path, values))
        else:
            wanted[expected] = None
    if wanted:
        types = {detail["type"] for detail in details}
        messages.append(_must_be(" or ".join(wanted), details[0]["input"], types))
    return list(dict.fromkeys(messages))


def _expected(detail: ErrorDetails) -> str | None:
    context = detail.get("ctx", {})
    if detail["type"] == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return _PATTERNS.get(pattern, f"text that matches {pattern}")
    words = _EXPECTED.get(detail["type"])
    return words.format(**context) if words else None


def _must_be(expected: str, value: Any, types: set[str]) -> str:
    if value is None:
        return f"is empty; it must be {expected}, so give it or remove the key"
    if isinstance(value, str) and types & _NUMBERS:
        number = _number_in(value)
        if number is not None:
            how = "without quotes" if scalar(number) == scalar(value) else "instead"
            return f"{value!r} is text; write {number} {how}"
    return f"must be {expected}, got {shown(value)}"


def _number_in(text: str) -> str | None:
    """The number that a text spells, if it does."""
    for candidate in (text, re.sub(r"(?<=\d)[_,](?=\d)", "", text)):
        try:
            found = scalar(candidate)
        except ValueError:
            return None
        if isinstance(found, int | float) and not isinstance(found, bool):
            return candidate
    return None


def _message(detail: ErrorDetails, path: KeyPath, values: Any) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return _unknown_key(path, values)
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "part_type":
            return f"{detail['msg']}, got {shown(detail['input'])}"
        case kind if kind in _COUNTS:
            return _COUNTS[kind].format(**context)
    found = detail["msg"].replace("Input should be", "must be")
    is_own = found == detail["msg"]
    return found if is_own else f"{found}, got {shown(detail['input'])}"


def _unknown_key(path: KeyPath, values: Any) -> str:
    """Names the nearest key of the section, or the same key in another section."""
    key, section = str(path[-1]), path[:-1]
    known = known_keys(values, section)
    advice = suggest(key, known)
    if not advice.startswith("did you mean"):
        elsewhere = [other for other in every_key(values) if other.rsplit(".", 1)[-1] == key]
        if elsewhere:
            advice = "did you mean " + " or ".join(map(repr, elsewhere[:3])) + "?"
    here = value_at(values, section)
    owner = here.get("type") if isinstance(here, Mapping) and follow(values, section) else None
    return f"unknown key for {owner!r}; {advice}" if owner else f"unknown key; {advice}"
