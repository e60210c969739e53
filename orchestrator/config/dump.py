"""Configurations back to plain values and to YAML."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from orchestrator.config.base import Config, Part
from orchestrator.config.duration import Duration
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.yaml import MAX_DEPTH


def plain(config: Config, only_set: bool = False) -> dict[str, Any]:
    """A section as mappings, lists and scalars, keyed as the file spells it.

    Args:
        config: the section.
        only_set: leave out what was not given but is a default; a part keeps its `type`.
    """
    return _section(config, config.model_dump(mode="json"), only_set, "", ())


def dump_yaml(config: ExperimentConfig) -> str:
    """The whole file with every default written out; reading it gives an equal configuration.

    A part whose `type` is searched or replaced keeps only what was given: another type has
    defaults of its own, and written-out defaults would be taken for choices.
    """
    values = _section(config, config.model_dump(mode="json"), False, "", _varied(config))
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _varied(config: ExperimentConfig) -> set[str]:
    keys = [*(config.sweep.space if config.sweep else ())]
    keys += config.distill.set if config.distill else ()
    return {key.removesuffix(".type") for key in keys if key.endswith(".type")}


def _section(
    config: Config, dumped: dict[str, Any], only_set: bool, at: str, varied: Collection[str]
) -> dict[str, Any]:
    only_set = only_set or at in varied
    found: dict[str, Any] = {}
    for name, info in _ordered(config):
        key, value = info.alias or name, getattr(config, name)
        is_type = name == "type" and isinstance(config, Part)
        unset = only_set and name not in config.model_fields_set
        empty = value is None and not info.is_required() and info.default is None
        if is_type or not (unset or empty):
            lower = f"{at}.{key}" if at else key
            found[key] = _value(value, dumped[key], only_set, lower, varied)
    return found


def _ordered(config: Config) -> list[tuple[str, FieldInfo]]:
    """Fields as declared, but a part's `type` first."""
    fields = type(config).model_fields
    return sorted(fields.items(), key=lambda item: item[0] != "type")


def _value(value: Any, dumped: Any, only_set: bool, at: str, varied: Collection[str]) -> Any:
    if isinstance(value, Config):
        return _section(value, dumped, only_set, at, varied)
    if isinstance(value, tuple | list):
        pairs = enumerate(zip(value, dumped, strict=True))
        return [_value(item, low, only_set, f"{at}.{n}", varied) for n, (item, low) in pairs]
    if isinstance(value, dict):
        return {
            key: _value(item, dumped[key], only_set, f"{at}.{key}", varied)
            for key, item in value.items()
        }
    return dumped


def plain_value(value: Any) -> Any:
    """A value given from Python as mappings, lists and scalars.

    Raises:
        ValueError: for keys that are not text, or values that hold themselves.
    """
    return _plain_value(value, MAX_DEPTH)


def _plain_value(value: Any, depth: int) -> Any:
    if not depth:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, Config):
        return plain(value, only_set=True)
    if isinstance(value, Duration | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"keys are text, but got {wrong[0]!r}")
        return {key: _plain_value(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item, depth - 1) for item in value]
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# PyYAML knows the numbers of YAML 1.1 only; text such as '1e-3' needs quotes in 1.2.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$|0o[0-7]+$"), list("-+0123456789")
)


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    """Lists of scalars on one line."""
    short = not any(isinstance(item, dict | list) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=short)


_Dumper.add_representer(list, _represent_list)
