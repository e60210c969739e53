"""Run folders with real networks that were not trained, for benchmarks of serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import orchestrator.config  # noqa: F401  (registers the zoo)
from orchestrator.config.base import find
from orchestrator.files import write_json
from orchestrator.networks import build_network
from orchestrator.run_folder.model_file import ModelSpec, model_digest, save_model
from orchestrator.run_folder.paths import RunPaths

SHAPE = (1, 28, 28)
LABELS = tuple(f"label {number}" for number in range(10))
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "efficientnet_small": {"type": "efficientnet_small"},
    "resnet18, width 0.25": {"type": "resnet18", "width": 0.25},
}


def make_run(root: Path, model: dict[str, Any], seed: int) -> Path:
    """A run folder; batch norms have the statistics of noise."""
    spec = ModelSpec(
        model=model,
        outputs=len(LABELS),
        shape=SHAPE,
        mean=(0.2859,),
        std=(0.3529,),
        label_names=LABELS,
        data_digest="d" * 64,
        split_digest="5" * 64,
    )
    torch.manual_seed(seed)
    section: Any = find("model", model["type"]).config.model_validate(model)
    network = build_network(section, outputs=spec.outputs, shape=spec.shape, load=False)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(32, *SHAPE))
    root.mkdir(parents=True)
    save_model(RunPaths(root), network.state_dict(), spec)
    return root


def make_ensemble(root: Path, members: list[Path]) -> Path:
    """An ensemble folder beside its members', who all weigh the same."""
    root.mkdir(parents=True)
    listed = [
        {"path": f"../{path.name}", "sha256": model_digest(path), "weight": 1 / len(members)}
        for path in members
    ]
    content = {
        "format": 1,
        "members": listed,
        "method": {"type": "average"},
        "combine": "probabilities",
        "split_digest": "5" * 64,
        "select": {"accuracy": 0.1, "nll": 2.3},
    }
    write_json(root / "ensemble.json", content)
    return root
