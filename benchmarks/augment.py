"""Augmented, normalised 28×28 training images per second: our loader against torchvision.

Both sides deliver the same batches of the same images under the same policy: ours on one thread of
one process, torchvision's transforms per image (Pillow) in a DataLoader with two workers that stay
alive. One thread, because two that wait for each other collapse when other programs want the same
cores, which would say nothing about augmentation. Run with ``python -m benchmarks.augment``; prints
JSON. torchvision is looked for as the tests do, see tests/references.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import alternate, machine
from orchestrator.config.base import Part, build
from orchestrator.config.data import Crop, DataConfig, Flip, RandAugment, SplitConfig, Synthetic
from orchestrator.data.memory import load_data
from orchestrator.host import SingleWorker
from tests.references import import_torchvision

WORKERS = 2
POLICIES: dict[str, tuple[Part, ...]] = {
    "crop, flip": (Crop(padding=2), Flip()),
    "crop, flip, randaugment": (Crop(padding=2), Flip(), RandAugment()),
}


class PerImage(Dataset[Any]):
    """Images that are transformed one at a time, as most training scripts do."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[..., Any]):
        self._images, self._labels, self._transform = images, labels, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self._images[index, :, :, 0])
        return self._transform(image), int(self._labels[index])


def ours(data: DataConfig, batch_size: int) -> Callable[[], float]:
    """Seconds of one epoch of our loader."""
    loader = build(
        "loader",
        data.loader,
        data=data,
        seed=0,
        batch_size=batch_size,
        micro_batch=None,
        worker=SingleWorker(),
        extra_targets={},
    )

    def epoch() -> float:
        began = time.perf_counter()
        for _ in loader.train(0):
            pass
        return time.perf_counter() - began

    return epoch


def theirs(
    data: DataConfig, batch_size: int, with_randaugment: bool, transforms: Any
) -> Callable[[], float]:
    """Seconds of one epoch of torchvision in a DataLoader."""
    found = load_data(data)
    bilinear = transforms.InterpolationMode.BILINEAR
    steps = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip()]
    if with_randaugment:
        steps.append(transforms.RandAugment(2, 9, interpolation=bilinear))
    steps += [transforms.ToTensor(), transforms.Normalize(found.info.mean, found.info.std)]
    rows = found.ids["train"]
    images, labels = found.train.inputs["image"][rows], found.train.targets["label"][rows]
    loader = DataLoader(
        PerImage(images, labels, transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=4,
    )

    def epoch() -> float:
        began = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - began

    return epoch


def main() -> None:
    """Measures every policy and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    import_torchvision()
    from torchvision import transforms

    results: dict[str, Any] = {}
    for name, parts in POLICIES.items():
        for batch_size in (128, 512):
            source = Synthetic(samples=given.samples, test_samples=0)
            data = DataConfig(source=source, split=SplitConfig(val=0, select=0), augment=parts)
            sides = {
                "ours": ours(data, batch_size),
                "torchvision": theirs(data, batch_size, "randaugment" in name, transforms),
            }
            found = alternate(sides, given.rounds)
            found["images per second"] = {
                side: round(given.samples / values["median"])
                for side, values in found["seconds"].items()
            }
            results[f"{name}, batch {batch_size}"] = found
    document = {"benchmark": "augment", "machine": machine(), "results": results}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
