"""A run keeps the user's own modules that it was made with, so that it works without them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.config.user_code import (
    MANIFEST,
    KeptCode,
    file_digest,
    files_of,
    kept_code,
    local_modules,
)
from orchestrator.files import write_bytes, write_json
from orchestrator.run_folder.paths import RunPaths


def keep_code(paths: RunPaths, modules: Iterable[str]) -> list[str]:
    """Copies the modules that a file names, and what they import, into the run's folder.

    Installed packages are left out. The manifest is written last; copies without one do not
    exist.

    Args:
        modules: as `named_modules` gives them.

    Returns:
        What a resumed run should note: the copies that are no longer as they were, by path.
    """
    before = kept_code(paths.root) or KeptCode(paths.code, {}, ())
    places = local_modules(modules)
    if not places:
        return []
    files: dict[str, str] = {}
    for place in places:
        for path in files_of(place):
            name = path.relative_to(place.parent).as_posix()
            files[name] = _copy(path, paths.code / name)
    for name in before.files.keys() - files.keys():
        (paths.code / name).unlink(missing_ok=True)
    origins = list(dict.fromkeys(str(folder) for folder in _origins(places, before)))
    write_json(paths.code / MANIFEST, {"format": 1, "origins": origins, "files": files})
    names = sorted({*before.files, *files}) if before.files else []
    return [name for name in names if before.files.get(name) != files.get(name)]


def _copy(path: Path, target: Path) -> str:
    """Copies a file unless it is there already; returns its digest."""
    digest = file_digest(path)
    if file_digest(target) != digest:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, path.read_bytes())
    return digest


def _origins(places: Iterable[Path], before: KeptCode) -> list[Path]:
    """The folders of modules; those of a run's own copies are where they came from at first."""
    folders: list[Path] = []
    for place in places:
        own = place.parent == before.folder
        folders += before.origins if own else (place.parent,)
    return folders
