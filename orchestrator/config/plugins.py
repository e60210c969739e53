"""Imports the modules that register users' own parts."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import ConfigError, Problem

ENTRY_POINTS = "orch.plugins"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load_plugins(modules: Iterable[str], folders: Iterable[Path] = ()) -> None:
    """Imports modules by name, after those of installed packages (group `orch.plugins`).

    Args:
        modules: dotted module names, as under `plugins:`.
        folders: where modules are searched besides the current folder and installed packages.
            They stay on `sys.path`, since a part's own code is imported when it is built.

    Raises:
        ConfigError: with a problem for each module that could not be imported.
    """
    for folder in [*folders, Path.cwd()]:
        # At the end: a user's folder must not hide an installed package.
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    problems = _load_entry_points()
    for number, name in enumerate(modules):
        if why := _import(name):
            problems.append(Problem(why, f"plugins.{number}"))
    if problems:
        raise ConfigError(problems)


def _load_entry_points() -> list[Problem]:
    problems = []
    for module, package in _entry_points():
        if why := _import(module):
            problems.append(Problem(f"{why} (a plugin of the installed package {package!r})"))
    return problems


@functools.cache
def _entry_points() -> tuple[tuple[str, str], ...]:
    """Module and package of every installed plugin; looked for once, since it reads the disk."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return tuple((one.module, one.dist.name if one.dist else one.name) for one in found)


def _import(name: str) -> str:
    """Imports one module; says why it could not be, or nothing."""
    if not _MODULE.fullmatch(name):
        return f"{name!r} is not a module's name, such as my_package.orch"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            return (
                f"there is no module {name!r}; it must be installed, "
                "or stand beside this file or in the current folder"
            )
        return f"importing {name!r} failed: {error}; install what it needs"
    except (Exception, SystemExit) as error:
        return f"importing {name!r} failed: {type(error).__name__}: {error}"
    return ""
