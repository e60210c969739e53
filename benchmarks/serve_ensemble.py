"""An ensemble of eight networks of one architecture: the path that the server chooses, against its
members one after another in fp32, as they were loaded.

Both sides get uint8 images and give probabilities; both have the same threads. The networks are
trained for a few steps on scikit-learn's digits: time does not depend on the weights, but what bf16
and int8 change of a probability does, and so what `precision: auto` may choose. `--ensemble` takes
another one. With it stand the arithmetic of a sample and what the processor does of it in a product
of two large matrices, which is the most to be had from direct convolutions in that precision. Run
with ``python -m benchmarks.serve_ensemble``; prints JSON.
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
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import alternate, machine
from benchmarks.served import ARCHITECTURES, images, make_ensemble, make_run
from orchestrator.config.serving import ServeConfig
from orchestrator.serve.executors.load import load_executor
from orchestrator.serve.executors.samples import sample_inputs, take
from orchestrator.serve.images import to_unit
from orchestrator.serve.predictor import Predictor, load_predictor

MEMBERS = 8
BATCHES = (1, 2, 4, 8)


def measure(root: Path, config: ServeConfig, rounds: int, fresh: bool) -> dict[str, Any]:
    """Seconds of a forward pass by batch size, both sides."""
    began = time.perf_counter()
    executor = load_executor(root, "ensemble", "1", config)
    ready = time.perf_counter() - began
    plain = load_predictor(root)
    results: dict[str, Any] = {
        "chosen": executor.kind,
        "max batch": executor.max_batch,
        "seconds to choose": round(ready, 1),
        "GFLOP a sample": round(operations(plain) / 1e9, 4),
    }
    samples = images(BATCHES[-1]) if fresh else sample_inputs(root, plain.card)[0]
    for size in BATCHES:
        batch = np.asarray(take(samples, size))
        ours = executor.run(batch, None).probabilities
        theirs = plain.predict(torch.from_numpy(to_unit(batch))).numpy()
        sides: dict[str, Callable[[], float]] = {
            "chosen": timed(lambda batch=batch: executor.run(batch, None)),
            "in turn, fp32": timed(
                lambda batch=batch: plain.predict(torch.from_numpy(to_unit(batch)))
            ),
        }
        found = alternate(sides, rounds)
        found["largest difference of a probability"] = float(np.abs(ours - theirs).max())
        results[f"batch {size}"] = found
    return results


def operations(plain: Predictor) -> int:
    """Multiplications and additions of convolutions and products for one sample."""
    with FlopCounterMode(display=False) as counter:
        plain.predict(torch.zeros(1, *plain.card.shape))
    return counter.get_total_flops()


def product_rate(kind: torch.dtype, size: int = 1024) -> float:
    """GFLOP/s of the product of two matrices, the best of several."""
    first, second = (torch.randn(size, size).to(kind) for _ in range(2))
    seconds = [timed(lambda: first @ second, 1)() for _ in range(20)]
    return round(2 * size**3 / min(seconds) / 1e9, 1)


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
    rates = {str(kind)[6:]: product_rate(kind) for kind in (torch.float32, torch.bfloat16)}
    results: dict[str, Any] = {"GFLOP/s of a product of matrices": rates}
    with ensembles(given.ensemble) as folders:
        for name, root in folders.items():
            for precision in ("fp32", "auto"):
                config = ServeConfig(cpus=given.threads, precision=precision)
                found = measure(root, config, given.rounds, fresh=given.ensemble is None)
                results[f"{name}, precision {precision}"] = found
    document = {"benchmark": "serve_ensemble", "machine": machine(), "results": results}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
