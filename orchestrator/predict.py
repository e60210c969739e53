"""What a trained model says of a split, from its run folder alone."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestrator.config.base import build
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import load_config
from orchestrator.config.training import ClassifyTask
from orchestrator.data.types import Batch, Loader
from orchestrator.engine.shared import autocast, place_inputs, set_memory_format
from orchestrator.errors import DataError
from orchestrator.evaluate import predict, samples_of
from orchestrator.host import Worker
from orchestrator.run_folder.model_file import load_model, model_digest
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import Predictions, read_predictions, write_predictions
from orchestrator.run_folder.records import EventLog
from orchestrator.tasks.base import StepOutput, Task


def predict_run(*, worker: Worker, root: Path, split: str) -> Predictions:
    """A run's logits on a split of the data it was trained on; kept in its folder.

    A reading of the test split is recorded in the run's `events.jsonl`.

    Raises:
        RunFolderError: if the run has no trained model.
        DataError: if the data set has no such split, or is not the one of the training.
    """
    paths = RunPaths(root)
    path = paths.predictions(split)
    if path.exists() and path.stat().st_mtime >= paths.model.stat().st_mtime:
        return read_predictions(path)
    config = load_config(paths.config)
    if isinstance(config.scale.cpus, int):
        torch.set_num_threads(config.scale.cpus)
    predictions = _predict(config, root, split, worker)
    write_predictions(path, predictions)
    if split == "test":
        _record_reading(paths)
    return predictions


def _predict(config: ExperimentConfig, root: Path, split: str, worker: Worker) -> Predictions:
    network, spec = load_model(root)
    loader = _loader(config, worker)
    if not samples_of(loader.info, split):
        have = ", ".join(name for name, size in loader.info.sizes.items() if size)
        raise DataError(f"the data set has no samples in split {split!r}; it has {have}")
    if spec.data_digest != loader.info.digest:
        raise DataError(
            f"{root} was trained on other data ({spec.data_digest[:12]}) than "
            f"data.source gives now ({loader.info.digest[:12]})"
        )
    channels_last = spec.memory_format == "channels_last"
    network = network.to(worker.device)
    if channels_last:
        set_memory_format(network, torch.channels_last)

    def step(task: Task, batch: Batch) -> StepOutput:
        batch = place_inputs(batch, worker.device, channels_last)
        with torch.no_grad(), autocast(worker.device, spec.precision):
            return task.loss(task.forward(network, batch), batch)

    task: Task = build("task", ClassifyTask())
    found = predict(step, task, loader, split, worker, config.evaluate.batch_size)
    loader.close()
    assert found is not None
    return found


def _loader(config: ExperimentConfig, worker: Worker) -> Loader:
    loader: Loader = build(
        "loader",
        config.data.loader,
        data=config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        micro_batch=None,
        worker=worker,
        extra_targets={},
    )
    return loader


def _record_reading(paths: RunPaths) -> None:
    events = EventLog(paths.events)
    digest = model_digest(paths.root)
    events.record("test_read", "the test split was read", model=digest)
    events.close()
