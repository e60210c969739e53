"""The end of a run: its best model and that model's answers, written; status and tracker closed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.evaluate import Described, predict, samples_of
from orchestrator.hooks import Interrupt
from orchestrator.loop import RunState
from orchestrator.parts import Parts
from orchestrator.run_folder.checkpoint import CheckpointStore
from orchestrator.run_folder.model_file import ModelSpec, save_model
from orchestrator.run_folder.opening import OpenedRun
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import Predictions, write_predictions
from orchestrator.run_folder.statistics import make_statistics, write_statistics
from orchestrator.tracking.base import Tracker, artifact_of

HELD_OUT = ("val", "select")
"""The splits whose predictions every run keeps; the first one's statistics are kept too."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `best` has step, epoch, value and metrics of the best evaluation."""

    root: Path
    state: Literal["done", "interrupted"]
    why: str
    step: int
    best: Mapping[str, Any] | None


def finish(
    parts: Parts,
    paths: RunPaths,
    opened: OpenedRun | None,
    tracker: Tracker,
    store: CheckpointStore | None,
    state: RunState,
    interrupt: Interrupt,
) -> RunResult:
    """Goes back to the best checkpoint, exports it and says how the run ended.

    An interrupted run is left to be resumed: nothing is exported. Frees the run's parts.
    """
    interrupted = interrupt.received is not None
    if not interrupted:
        began = time.perf_counter()
        best = parts.worker.broadcast(store.best_intact() if store else None)
        if best is not None and best.step != state.step:
            parts.engine.load_model_state(best.path)
        export(parts, paths)
        if opened:
            opened.status.timing("export", time.perf_counter() - began)
    why = state.stop_reason or f"all {math.ceil(state.step)} steps trained"
    result = RunResult(
        paths.root, "interrupted" if interrupted else "done", why, state.step, state.best
    )
    if opened:
        opened.status.finish(result.state, why)
    tracker.summary({} if state.best is None else dict(state.best["metrics"]))
    made = artifact_of(paths)
    tracker.finish(result.state, [made] if made and not interrupted else [])
    parts.close()
    return result


def export(parts: Parts, paths: RunPaths) -> None:
    """Writes the model as it is, and its predictions where a sample has one answer."""
    config, loader = parts.config, parts.loader
    for split in () if parts.task.per_token else HELD_OUT:
        if count := samples_of(loader.info, split):
            described = Described(parts.engine.evaluate_step, loader.info, count)
            predictions = predict(
                described if split == HELD_OUT[0] else parts.engine.evaluate_step,
                parts.task,
                loader,
                split,
                parts.reader,
                config.evaluate.batch_size,
            )
            if predictions is not None:
                write_predictions(paths.predictions(split), predictions)
            if split == HELD_OUT[0]:
                _keep_statistics(described, predictions, parts, paths)
    weights = parts.engine.model_state()
    if parts.worker.is_main:
        spec = ModelSpec.of(
            config.model.model_dump(mode="json"),
            parts.task.outputs(loader.info),
            loader.info,
            plugins=config.plugins,
            precision=config.train.precision,
            memory_format=config.train.memory_format,
            per_token=parts.task.per_token,
        )
        save_model(paths, weights, spec)
    parts.worker.barrier()


def _keep_statistics(
    described: Described, predictions: Predictions | None, parts: Parts, paths: RunPaths
) -> None:
    """What a server compares its requests with; every rank takes part."""
    descriptors = described.gathered(parts.reader)
    if predictions is None or not descriptors:
        return
    found = make_statistics(
        descriptors,
        predictions.probabilities(),
        predictions.labels,
        data_digest=parts.loader.info.digest,
        split=HELD_OUT[0],
    )
    write_statistics(paths.root, found)
