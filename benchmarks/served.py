"""Run folders with small trained networks, for benchmarks of serving."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

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
MEAN, STD = 0.3, 0.37
STEPS, BATCH, RATE = 40, 64, 2e-3


@cache
def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits, shuffled: uint8[N, 1, 28, 28] and their labels."""
    found: Any = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 16
    images = F.interpolate(small, SHAPE[1:], mode="bilinear").clamp(0, 1)
    order = np.random.default_rng(0).permutation(len(images))
    return (255 * images).to(torch.uint8).numpy()[order], found.target[order].astype(np.int64)


def images(count: int) -> npt.NDArray[np.uint8]:
    """uint8[count, 1, 28, 28] that no network was trained on."""
    return np.resize(digits()[0][-256:], (count, *SHAPE))


def make_run(root: Path, model: dict[str, Any], seed: int) -> Path:
    """A run folder; what bf16 and int8 change of a probability needs a network that is trained."""
    spec = ModelSpec(
        model=model,
        outputs=len(LABELS),
        shape=SHAPE,
        mean=(MEAN,),
        std=(STD,),
        label_names=LABELS,
        data_digest="d" * 64,
        split_digest="5" * 64,
    )
    torch.manual_seed(seed)
    section: Any = find("model", model["type"]).config.model_validate(model)
    network = build_network(section, outputs=spec.outputs, shape=spec.shape, load=False)
    _train(network.train())
    root.mkdir(parents=True)
    save_model(RunPaths(root), network.state_dict(), spec)
    return root


def _train(network: torch.nn.Module) -> None:
    """A few steps: then eight members together know two thirds of new digits or more."""
    pixels, labels = (torch.from_numpy(part[:-256]) for part in digits())
    x_NCHW: Tensor = (pixels / 255 - MEAN) / STD
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(x_NCHW), (BATCH,))
        loss = F.cross_entropy(network(x_NCHW[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


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
