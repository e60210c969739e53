"""The user's own modules: which of them a file names, where they lie, and a run's copies."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.model import ImportedModel
from orchestrator.errors import UserError

CODE, MANIFEST = "code", "code.json"
"""The folder of a run's copies, and the file in it that says what they are copies of."""

SMALL = 2**20

_TARGET = re.compile(r"([A-Za-z_]\w*)(\.\w+)*:[A-Za-z_][\w.]*")
_log = logging.getLogger(__name__)


def named_modules(config: ExperimentConfig) -> tuple[str, ...]:
    """The modules that a file names: its plugins, and those of networks that are imported.

    Networks that a sweep chooses from, and a student's, are among them.
    """
    targets: list[Any] = []
    if isinstance(config.model, ImportedModel):
        targets.append(config.model.target)
    if config.sweep and "model.target" in config.sweep.space:
        targets += getattr(config.sweep.space["model.target"], "values", ())
    if config.distill:
        targets.append(config.distill.set.get("model.target"))
    imported = [one.partition(":")[0] for one in targets if isinstance(one, str)]
    return tuple(dict.fromkeys([*config.plugins, *imported]))


# --- where they lie ------------------------------------------------------------------------


def local_modules(modules: Iterable[str]) -> list[Path]:
    """The file or folder of each top-level module that is not installed with Python.

    Those that they import are included, however deep, if they are not installed either. Sources
    are read, not run, so that what is imported later, inside a function, is found too.
    """
    found: dict[str, Path | None] = {}
    waiting = [name.partition(".")[0] for name in modules]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        place = found[name] = _place(name)
        if place is not None:
            waiting += [top for path in files_of(place) for top in _imported(path)]
    return sorted({place for place in found.values() if place is not None})


def files_of(place: Path) -> Iterator[Path]:
    """The files of a module, or of a package and the packages in it.

    Beside Python's they are the small ones that a package brings along, `SMALL` bytes at most.
    """
    if place.is_file():
        yield place
        return
    for path in sorted(place.iterdir()):
        if path.is_dir():
            # A folder without Python files, such as one of runs, is no part of a package.
            named = path.name.isidentifier() and not path.is_symlink()
            if named and any(path.glob("*.py")):
                yield from files_of(path)
        elif path.suffix == ".py" or (path.name[0] != "." and path.stat().st_size <= SMALL):
            yield path


def _place(name: str) -> Path | None:
    """The file or folder of a top-level module; None if it is installed, ours, or not there."""
    if name == "orchestrator" or name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None  # loading the file has its own message for a plugin that is not there
    folders = list(spec.submodule_search_locations or ())
    place = Path(folders[0] if folders else str(spec.origin)).absolute()
    return None if _installed(place.resolve()) or not place.exists() else place


def _installed(place: Path) -> bool:
    """Whether pip put a module there: into Python's folder, or one of `pip install --target`."""
    inside = {"site-packages", "dist-packages"} & set(place.parts)
    return bool(inside) or any(place.parent.glob("*.dist-info"))


def _imported(path: Path) -> Iterator[str]:
    """Top-level modules that a source names, in imports and in texts such as `pkg.mod:Class`."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it says so, in a better place
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = _TARGET.fullmatch(node.value)
            yield from [match[1]] if match else []


def check_importable(module: str, root: Path) -> None:
    """Checks that a module is there that a run's network comes from, without importing it.

    Raises:
        UserError: with the way out.
    """
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise UserError(
            f"{root} was made with the module {top!r}, of which neither the original nor the run's "
            f"copy in {root / CODE} is there; install it, or put it into the current folder"
        )


# --- a run's copies ------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptCode:
    """The copies in a run's folder.

    Attributes:
        folder: where they lie.
        files: sha256 of each, by path below the folder.
        origins: the folders that they were copied from.
    """

    folder: Path
    files: dict[str, str]
    origins: tuple[Path, ...]


def kept_code(root: Path) -> KeptCode | None:
    """What the run in a folder has kept of its user's code; None if nothing."""
    folder = root.absolute() / CODE
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        origins = tuple(Path(text) for text in content["origins"])
        return KeptCode(folder, dict(content["files"]), origins)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def use_kept_code(root: Path) -> None:
    """Lets a run's modules be imported as they were when it ran.

    The originals are searched behind everything else, as a file's own folder is. Where they are
    gone or have been changed since, or others would be found first, the run's copies come before
    everything. A module that is loaded already stays, with a warning if it is another.
    """
    kept = kept_code(root)
    if kept is None:
        return
    for folder in kept.origins:
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.append(str(folder))
    if not _changed(kept):
        return
    if str(kept.folder) not in sys.path:
        sys.path.insert(0, str(kept.folder))
    importlib.invalidate_caches()
    if changed := _changed(kept):
        _log.warning(
            "%s is loaded from elsewhere and differs from the copy in %s that belongs to the run; "
            "for the run's own, use a command of its own",
            changed,
            kept.folder,
        )


def _changed(kept: KeptCode) -> str:
    """A file that importing would not find as it was kept; empty where there is none."""
    places = {name.partition("/")[0]: None for name in kept.files}
    found = {top: _place(top.removesuffix(".py")) for top in places}
    for name, digest in kept.files.items():
        place = found[name.partition("/")[0]]
        if place is None or file_digest(place.parent / name) != digest:
            return name
    return ""


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex; empty where it can't be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
