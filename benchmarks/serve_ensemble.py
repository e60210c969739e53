"""An ensemble of eight networks of one architecture: the path that the server chooses, against its
members one after another in fp32, as they were loaded.

Both sides get uint8 images and give probabilities; both have the same threads. The networks are
fresh ones, with batch norms settled on noise: time does not depend on the weights, but what bf16
and int8 change of a probability does, so what `precision: auto` chooses here is no promise; point
`--ensemble` at a trained one. Run with ``python -m benchmarks.serve_ensemble``; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import alternate, machine
from benchmarks.served import ARCHITECTURES, make_ensemble, make_run
from orchestrator.config.serving import ServeConfig
from orchestrator.serve.executors.load import load_executor
from orchestrator.serve.images import to_unit
from orchestrator.serve.predictor import load_predictor

MEMBERS = 8
BATCHES = (1, 2, 4, 8)


def measure(root: Path, config: ServeConfig, rounds: int) -> dict[str, Any]:
    """Seconds of a forward pass by batch size, both sides."""
    began = time.perf_counter()
    executor = load_executor(root, "ensemble", "1", config)
    ready = time.perf_counter() - began
    plain = load_predictor(root)
    draws = np.random.default_rng(0)
    results: dict[str, Any] = {
        "chosen": executor.kind,
        "max batch": executor.max_batch,
        "seconds to choose": round(ready, 1),
    }
    for size in BATCHES:
        images = draws.integers(0, 256, (size, *plain.card.shape), dtype=np.uint8)
        ours = executor.run(images, None).probabilities
        theirs = plain.predict(torch.from_numpy(to_unit(images))).numpy()
        sides: dict[str, Callable[[], float]] = {
            "chosen": timed(lambda images=images: executor.run(images, None)),
            "in turn, fp32": timed(
                lambda images=images: plain.predict(torch.from_numpy(to_unit(images)))
            ),
        }
        found = alternate(sides, rounds)
        found["largest difference of a probability"] = float(np.abs(ours - theirs).max())
        results[f"batch {size}"] = found
    return results


def timed(work: Callable[[], Any], repeats: int = 5) -> Callable[[], float]:
    """Seconds of one of several calls in a row."""

    def call() -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - began) / repeats

    return call


@contextmanager
def ensembles(given: str | None) -> Iterator[dict[str, Path]]:
    """Folders by name: the one that was named, or fresh ones."""
    if given:
        yield {given: Path(given)}
        return
    with tempfile.TemporaryDirectory(prefix="orch-benchmark-") as text:
        folder = Path(text)
        made = {}
        for name, section in ARCHITECTURES.items():
            runs = [make_run(folder / f"{name}-{n}", section, n) for n in range(MEMBERS)]
            made[f"{MEMBERS} × {name}"] = make_ensemble(folder / name, runs)
        yield made


def main() -> None:
    """Measures every ensemble in fp32 and in what `auto` takes, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ensemble", help="a folder with ensemble.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = {}
    with ensembles(given.ensemble) as folders:
        for name, root in folders.items():
            for precision in ("fp32", "auto"):
                config = ServeConfig(cpus=given.threads, precision=precision)
                results[f"{name}, precision {precision}"] = measure(root, config, given.rounds)
    document = {"benchmark": "serve_ensemble", "machine": machine(), "results": results}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
