"""The `serve:` section that a server obeys: the trained file's, changed by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.config.load import load_config
from orchestrator.config.serving import ServeConfig
from orchestrator.run_folder.paths import RunPaths


def serve_config(root: Path, **changes: Any) -> ServeConfig:
    """The section in the `config.yaml` of a run, or of the sweep around an ensemble.

    Args:
        root: a run or ensemble folder.
        changes: fields to set; None leaves a field as it is.
    """
    folders = (root, root.parent)
    path = next((p for p in (RunPaths(folder).config for folder in folders) if p.exists()), None)
    section = load_config(path).serve if path else ServeConfig()
    wanted = {name: value for name, value in changes.items() if value is not None}
    return ServeConfig.model_validate(section.model_dump() | wanted)
