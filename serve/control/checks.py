"""What must hold among a model's versions, and between them and its traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import ModelEntry, Started, VersionSpec


def named_versions(rule: Mapping[str, Any]) -> set[str]:
    """The versions that a traffic section names."""
    named = {*rule.get("weights", ()), *rule.get("versions", ()), *rule.get("shadows", ())}
    return named | {rule[key] for key in ("stable", "canary") if key in rule}


def check_alike(entry: ModelEntry, spec: VersionSpec, started: Started) -> None:
    """Makes sure that versions of a model can stand for each other.

    Raises:
        LoadError: if this one differs in shape or labels from one that is there.
    """
    for other in entry.versions.values():
        card, had = started.card, other.started.card
        if card.shape != had.shape:
            differ = f"{spec.key} reads {list(card.shape)}, {other.spec.key} {list(had.shape)}"
        elif card.label_names != had.label_names:
            names, others = (_some_of(one.label_names) for one in (card, had))
            differ = f"{spec.key} has {names}, {other.spec.key} {others}"
        else:
            continue
        raise LoadError(
            f"versions of a model share input shape and labels, but {differ}; serve it under "
            "another name"
        )


def _some_of(labels: Sequence[str]) -> str:
    shown = ", ".join(repr(one) for one in labels[:3])
    return f"{len(labels)} labels ({shown}{', …' if len(labels) > 3 else ''})"
