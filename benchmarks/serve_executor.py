"""One network on the CPU: the path that the server chooses, against ONNX Runtime in fp32.

The other side is what one writes with ONNX Runtime alone: torch's exporter, a session with its
default settings and the same number of threads, and NumPy around it. Both get uint8 images and
give probabilities. Run with ``python -m benchmarks.serve_executor``; prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.common import alternate, machine
from benchmarks.serve_ensemble import timed
from benchmarks.served import ARCHITECTURES, images, make_run
from orchestrator.config.serving import ServeConfig
from orchestrator.run_folder.model_file import load_model
from orchestrator.serve.executors.load import load_executor

BATCHES = (1, 8, 32)


def plain_onnxruntime(root: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities float32[B, classes] of uint8[B, C, H, W]."""
    network, spec = load_model(root)
    example, batch = torch.zeros(2, *spec.shape), torch.export.Dim("batch")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    name = session.get_inputs()[0].name
    mean, std = (np.float32(values).reshape(-1, 1, 1) for values in (spec.mean, spec.std))

    def answer(images: np.ndarray) -> np.ndarray:
        x = (images.astype(np.float32) / np.float32(255) - mean) / std
        logits = session.run(None, {name: x})[0]
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    return answer


def measure(root: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of a forward pass by batch size, both sides."""
    executor = load_executor(root, "model", "1", ServeConfig(cpus=threads))
    theirs = plain_onnxruntime(root, threads)
    results: dict[str, Any] = {"chosen": executor.kind, "max batch": executor.max_batch}
    for size in BATCHES:
        batch = images(size)
        rows = executor.run(batch, None).probabilities
        sides = {
            "chosen": timed(lambda batch=batch: executor.run(batch, None), 20),
            "onnxruntime, fp32": timed(lambda batch=batch: theirs(batch), 20),
        }
        found = alternate(sides, rounds)
        found["largest difference of a probability"] = float(np.abs(rows - theirs(batch)).max())
        results[f"batch {size}"] = found
    return results


def main() -> None:
    """Measures every architecture and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="orch-benchmark-") as folder:
        results = {
            name: measure(make_run(Path(folder) / name, section, 0), given.threads, given.rounds)
            for name, section in ARCHITECTURES.items()
        }
    document = {"benchmark": "serve_executor", "machine": machine(), "results": results}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
