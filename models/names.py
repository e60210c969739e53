"""Choosing by name, and what a wrong name is answered with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Names the right choices nearest to `name`, or all of them when none is near."""
    choices = list(known)
    begun = [choice for choice in choices if len(name) > 2 and choice.startswith(name)][:3]
    near = begun or difflib.get_close_matches(name, choices, n=3)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return "choose from: " + (", ".join(choices) or "nothing")


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Looks a name up; `kind` is what the table holds, as in ``norm``.

    Raises:
        ValueError: naming the nearest right choices.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; {nearest(name, table)}")
    return table[name]
