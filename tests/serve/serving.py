"""Small real models in run folders, and images as files."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image

import orchestrator.config  # noqa: F401  (registers the zoo)
from orchestrator.config.base import find
from orchestrator.data.text.tokenizer import SPECIAL, Tokenizer
from orchestrator.files import write_json
from orchestrator.networks import build_network
from orchestrator.run_folder.model_file import ModelSpec, model_digest, save_model
from orchestrator.run_folder.paths import RunPaths

LABELS = ("bag", "boot", "coat")
SHAPE = (1, 12, 12)
MODEL = {"type": "resnet18", "width": 0.0625}


def small_spec(**changes: object) -> ModelSpec:
    values: dict[str, object] = {
        "model": MODEL,
        "outputs": len(LABELS),
        "shape": SHAPE,
        "mean": (0.3,),
        "std": (0.35,),
        "label_names": LABELS,
        "data_digest": "d" * 64,
        "split_digest": "5" * 64,
    }
    return ModelSpec(**(values | changes))  # type: ignore[arg-type]


def make_run(root: Path, seed: int = 0, **changes: object) -> Path:
    """A run folder with a real, untrained network whose BatchNorm statistics are not trivial."""
    spec = small_spec(**changes)
    torch.manual_seed(seed)
    section = find("model", str(spec.model["type"])).config.model_validate(spec.model)
    network = build_network(section, outputs=spec.outputs, shape=spec.shape, load=False)  # type: ignore[arg-type]
    network.train()
    for _ in range(3):
        network(torch.randn(16, *spec.shape))
    root.mkdir(parents=True, exist_ok=True)
    save_model(RunPaths(root), network.state_dict(), spec)
    return root


def make_ensemble(
    root: Path, members: list[Path], weights: list[float], combine: str = "probabilities"
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    listed = [
        {"path": f"../{path.name}", "sha256": model_digest(path), "weight": weight}
        for path, weight in zip(members, weights, strict=True)
    ]
    content = {
        "format": 1,
        "members": listed,
        "method": {"type": "greedy"},
        "combine": combine,
        "split_digest": "5" * 64,
        "select": {"accuracy": 0.5, "nll": 1.0},
    }
    write_json(root / "ensemble.json", content)
    return root


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


TEXT_LABELS = ("ham", "spam")
WORDS = ("free", "money", "meet", "tomorrow", "you")


def make_text_run(root: Path, seed: int = 0, length: int = 8) -> Path:
    """A run folder with a real, untrained network that labels texts."""
    tokenizer = Tokenizer("word", True, (*SPECIAL, *WORDS))
    model = {"type": "gru", "embedding": 8, "hidden": 8}
    spec = small_spec(
        model=model,
        outputs=len(TEXT_LABELS),
        shape=(length,),
        mean=(),
        std=(),
        label_names=TEXT_LABELS,
        tokenizer=tokenizer,
    )
    torch.manual_seed(seed)
    section = find("model", "gru").config.model_validate(model)
    network = build_network(
        section,  # type: ignore[arg-type]
        outputs=spec.outputs,
        shape=spec.shape,
        vocabulary=len(tokenizer),
        load=False,
    )
    root.mkdir(parents=True, exist_ok=True)
    save_model(RunPaths(root), network.state_dict(), spec)
    return root
