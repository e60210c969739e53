"""From a YAML file to a validated experiment, with everything that is wrong said at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.check import derived_document, validate, without_faults
from orchestrator.config.dump import dump_yaml, plain_value
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.overrides import Change, apply_changes, parse_override
from orchestrator.config.paths import make_absolute
from orchestrator.config.plugins import load_plugins
from orchestrator.config.problems import shown
from orchestrator.config.rules import check_rules
from orchestrator.config.serving import ServeConfig
from orchestrator.config.user_code import use_kept_code
from orchestrator.config.yaml import Document, KeyPath, read_yaml
from orchestrator.errors import ConfigError, Problem

__all__ = ["config_from_mapping", "derive", "dump_yaml", "load_config", "load_serve"]


PIPELINE_SECTIONS = ("sweep", "ensemble", "distill")
"""What a single run has no use for."""


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    single_run: bool = False,
    kept_code: bool = True,
) -> ExperimentConfig:
    """Reads an experiment.

    Args:
        path: the file. Paths in it are relative to its folder.
        overrides: ``key=value`` texts; paths in them are relative to the current folder.
        single_run: leave out the sections of the pipeline. They must be right in themselves, but
            need not fit the run: it may be shorter than the grace of a sweep's scheduler.
        kept_code: of a run's own file, import the user's modules as the run keeps them. Not where
            the file is only compared with another, whose modules are loaded.

    Raises:
        ConfigError: with every problem, each with its file and line.
    """
    path = Path(path)
    if kept_code:
        use_kept_code(path.parent)
    return _finish(_read(path, ()), overrides, [path.absolute().parent], single_run)


def load_serve(path: str | Path | None, overrides: Sequence[str] = ()) -> ServeConfig:
    """Reads the `serve` section of a file, which may hold nothing else.

    Args:
        path: an experiment, or a file of `serve:` alone; None for the defaults.
        overrides: ``serve.key=value`` texts.

    Raises:
        ConfigError: with every problem, each with its file and line.
    """
    document, folders = Document({}), list[Path]()
    if path is not None:
        document, folders = _read(Path(path), ()), [Path(path).absolute().parent]
    if not document.values.keys() - {"version", "serve", "plugins"}:
        stand_ins = {"name": "x", "data": {"source": {"type": "synthetic"}}}
        document.values |= stand_ins | {"model": {"type": "resnet18"}}
    return _finish(document, overrides, folders).serve


def config_from_mapping(
    mapping: Mapping[str, Any], overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """The same from a mapping of the file's keys; paths are relative to the current folder.

    Raises:
        ConfigError: with every problem.
    """
    try:
        values = plain_value(mapping)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return _finish(Document(values), overrides, [])


def derive(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """A trial's or a student's configuration: dotted changes, validated anew.

    A new `type` drops the keys that the new part does not know, except changed ones. Defaults
    that nobody gave are the new part's own.

    Raises:
        ConfigError: with every problem, unknown keys among them.
    """
    document, problems = derived_document(config, changes)
    make_absolute(document.values, Path.cwd())
    return _checked(document, problems)


def _finish(
    document: Document,
    overrides: Sequence[str],
    folders: Sequence[Path],
    single_run: bool = False,
) -> ExperimentConfig:
    changes, problems = _parse(overrides)
    # Plugins first: whether a changed `type` knows a key depends on what they register.
    early = [change for change in changes if change.key.split(".")[0] == "plugins"]
    problems += apply_changes(document, early)
    problems += _import_plugins(document, folders)
    problems += apply_changes(document, [change for change in changes if change not in early])
    make_absolute(document.values, Path.cwd())
    return _checked(document, problems, PIPELINE_SECTIONS if single_run else ())


def _parse(overrides: Sequence[str]) -> tuple[list[Change], list[Problem]]:
    changes: list[Change] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            changes.append(parse_override(text))
        except ConfigError as error:
            problems += error.problems
    return changes, problems


def _import_plugins(document: Document, folders: Sequence[Path]) -> list[Problem]:
    values = document.values
    modules = values.get("plugins") if isinstance(values, dict) else None
    texts = isinstance(modules, list) and all(isinstance(name, str) for name in modules)
    try:
        load_plugins(modules if texts and modules else [], folders)
    except ConfigError as error:
        return [_placed(problem, document) for problem in error.problems]
    return []


def _placed(problem: Problem, document: Document) -> Problem:
    section, _, number = problem.key.partition(".")
    path: KeyPath = (section, int(number)) if number else ("plugins",)
    return Problem(problem.message, problem.key, document.where(path))


def _checked(
    document: Document, problems: list[Problem], left_out: Sequence[str] = ()
) -> ExperimentConfig:
    """Validates, then applies the rules that look at several sections."""
    config, findings = validate(document.values)
    if config is not None and left_out:
        kept = {key: value for key, value in document.values.items() if key not in left_out}
        config, _ = validate(kept)
    # What is wrong is taken out, so that the rules can judge the rest in the same go.
    sound, wrong = config, list[KeyPath]()
    if config is None:
        sound, wrong = without_faults(document.values, [finding.path for finding in findings])
    for finding in check_rules(sound) if sound else []:
        if not any(_touch(path, bad) for path in (finding.path, *finding.also) for bad in wrong):
            findings.append(finding)
    problems = problems + [finding.problem(document) for finding in findings]
    if problems or config is None:
        raise ConfigError(sorted(problems, key=_order))
    return config


def _touch(one: KeyPath, other: KeyPath) -> bool:
    """Whether one path holds the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _order(problem: Problem) -> tuple[bool, str, int]:
    """By file and line; overrides last."""
    match = re.fullmatch(r"(.*?):(\d+)(?::\d+)?", problem.where)
    is_override = problem.where.startswith("override ")
    return is_override, match[1] if match else problem.where, int(match[2]) if match else 0


# --- extends -------------------------------------------------------------------------------


def _read(path: Path, children: tuple[Path, ...]) -> Document:
    """A file merged over the one that it extends, if it does."""
    document = read_yaml(path)
    make_absolute(document.values, path.absolute().parent)
    if "extends" not in document.values:
        return document
    parent, where = document.values.pop("extends"), document.where(("extends",))
    document.forget(("extends",))
    if not isinstance(parent, str) or not parent:
        message = f"must name one file, such as base.yaml, got {shown(parent)}"
        raise ConfigError([Problem(message, "extends", where)])
    family = (*children, path.absolute())
    source = Path(os.path.normpath(path.parent / parent))
    if any(_same(source, member) for member in family):
        chain = " -> ".join([*(member.name for member in family), source.name])
        raise ConfigError([Problem(f"files extend each other: {chain}", "extends", where)])
    if not source.is_file():
        raise ConfigError([Problem(f"there is no file {source}", "extends", where)])
    base = _read(source, family)
    _merge(base, document, ())
    return base


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _merge(base: Document, over: Document, path: KeyPath) -> None:
    """Lays a file's values over its parent's, section by section; lists are replaced."""
    old, new = _at(base, path), _at(over, path)
    for key, value in new.items():
        here = (*path, key)
        if _mergeable(old.get(key), value):
            base.places[here] = over.where(here)
            _merge(base, over, here)
            continue
        base.forget(here)
        old[key] = value
        places = over.places.items()
        base.places.update({p: where for p, where in places if p[: len(here)] == here})


def _mergeable(old: Any, new: Any) -> bool:
    """Whether both are one section; another `type` is another section."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return False
    return not ("type" in old and "type" in new and old["type"] != new["type"])


def _at(document: Document, path: KeyPath) -> dict[str, Any]:
    found: Any = document.values
    for key in path:
        found = found[key]
    section: dict[str, Any] = found
    return section
