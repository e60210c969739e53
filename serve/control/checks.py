"""What must hold among a model's versions, and between them and its traffic."""

from __future__ import annotations

from collections.abc import Mapping
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
        if (card.shape, card.label_names) != (had.shape, had.label_names):
            raise LoadError(
                f"versions of a model share input shape and labels, but {spec.key} has "
                f"{list(card.shape)} and {len(card.label_names)} labels, {other.spec.key} "
                f"{list(had.shape)} and {len(had.label_names)}; serve it under another name"
            )
