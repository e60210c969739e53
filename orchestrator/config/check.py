"""Validation of a document, and configurations derived from others, before the rules."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.config.dump import plain, plain_value
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.keys import value_at
from orchestrator.config.overrides import Change, apply_changes
from orchestrator.config.problems import Finding, findings_of
from orchestrator.config.yaml import Document, KeyPath
from orchestrator.errors import ConfigError, Problem

_STAND_INS: Mapping[str, Any] = {"name": "x", "data": {}, "model": {"type": "resnet18"}}


def validate(values: Any) -> tuple[ExperimentConfig | None, list[Finding]]:
    """Validates a whole file's values: the configuration, or all that is wrong."""
    try:
        return ExperimentConfig.model_validate(values, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, findings_of(error, values)


def without_faults(
    values: Any, wrong: Iterable[KeyPath]
) -> tuple[ExperimentConfig | None, list[KeyPath]]:
    """The configuration with defaults in place of what is wrong, and what was taken out.

    None where that does not make it whole. Required sections get a stand-in.
    """
    mended = copy.deepcopy(values)
    taken = [path[:-1] if path[-1:] == ("type",) else path for path in wrong]
    # From the end of lists to their beginning, so that indices stay right.
    for path in sorted(set(taken), key=lambda path: [f"{key:>9}" for key in path], reverse=True):
        section = value_at(mended, path[:-1]) if path else None
        if isinstance(section, dict):
            section.pop(str(path[-1]), None)
        elif isinstance(section, list) and isinstance(path[-1], int):
            section.pop(path[-1])
    for key, stand_in in _STAND_INS.items():
        mended.setdefault(key, copy.deepcopy(stand_in))
    if isinstance(mended["data"], dict):
        mended["data"].setdefault("source", {"type": "synthetic"})
    return validate(mended)[0], taken


def derived_document(
    config: ExperimentConfig, changes: Mapping[str, Any]
) -> tuple[Document, list[Problem]]:
    """A configuration's given values with dotted changes applied, and what could not be set."""
    document = Document(plain(config, only_set=True))
    found: list[Change] = []
    problems: list[Problem] = []
    for key, value in changes.items():
        try:
            found.append(Change(key, plain_value(value)))
        except ValueError as error:
            problems.append(Problem(str(error), key))
    return document, problems + apply_changes(document, found)


def changed(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Derives a configuration, re-validated section by section but not across sections.

    Raises:
        ConfigError: with everything that does not fit.
    """
    document, problems = derived_document(config, changes)
    found, findings = validate(document.values)
    problems += [finding.problem(document) for finding in findings]
    if problems or found is None:
        raise ConfigError(problems)
    return found
