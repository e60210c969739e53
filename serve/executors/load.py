"""From a folder and the `serve:` section to what runs the network."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.executors.base import Executor, PlainExecutor
from orchestrator.serve.predictor import load_any

_DEFAULT_BATCH = 64


def load_executor(
    root: Path, name: str, version: str, config: ServeConfig, device: torch.device | str = "cpu"
) -> Executor:
    """Loads what answers for a run, student or ensemble folder, ready to run.

    Args:
        root: a folder with `model.json` or `ensemble.json`.
        name, version: what clients call it.
        config: executor, precision, tolerance, largest batch.
        device: where it computes.

    Raises:
        RunFolderError: if there is no model, or an ensemble's member is missing or was changed.
        WeightsError: if weights do not fit their specification.
    """
    most = _DEFAULT_BATCH if config.max_batch == "auto" else config.max_batch
    return PlainExecutor(load_any(root, name, device, version), most)
