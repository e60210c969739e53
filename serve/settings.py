"""What a server obeys: a file's `serve:` section, changed by the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.load import load_config, load_serve
from orchestrator.config.serving import ServeConfig
from orchestrator.errors import UserError
from orchestrator.run_folder.paths import RunPaths
from orchestrator.serve.targets import Served, find_served


def find_all(
    targets: Sequence[str],
    runs_dir: Path,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> tuple[list[Served], ServeConfig]:
    """The models that are asked for, and the section that their server obeys.

    Args:
        targets: see `find_served`; those of `serve.models` are added.
        runs_dir: where names are looked up.
        file: whose section it is; None for that of the first target's `config.yaml`.
        overrides: ``serve.key=value`` texts.
        changes: fields to set; None leaves a field as it is.

    Raises:
        ConfigError: with everything that is wrong in the file or the overrides.
        RunFolderError, UserError: see `find_served`; or if there is nothing to serve.
    """
    served = find_served(targets, runs_dir)
    config = serve_config(served[0].root if served else None, file, overrides, **changes)
    listed = [f"{one.name}@{one.version}={one.target}" for one in config.models]
    if not targets and not listed:
        raise UserError("name a TARGET to serve, or list some in `serve.models` of a --config file")
    return find_served([*targets, *listed], runs_dir), config


def serve_config(
    root: Path | None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> ServeConfig:
    """The section of a file, or that of a run's or of the sweep around an ensemble.

    Args:
        root: a run or ensemble folder, whose `config.yaml` is used where no file is given.
        file, overrides, changes: see `find_all`.

    Raises:
        ConfigError: with everything that is wrong.
    """
    if file is not None or root is None:
        section = load_serve(file, overrides)
    else:
        folders = (root, root.parent)
        paths = (RunPaths(folder).config for folder in folders)
        trained = next((path for path in paths if path.exists()), None)
        section = load_config(trained, overrides).serve if trained else load_serve(None, overrides)
    wanted = {name: value for name, value in changes.items() if value is not None}
    return ServeConfig.model_validate(section.model_dump() | wanted)
