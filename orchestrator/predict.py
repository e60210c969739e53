"""What a trained model says of a split, or writes after texts, from its run folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from orchestrator.config.base import build
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import load_config
from orchestrator.config.training import ClassifyTask
from orchestrator.data.text.rows import TARGET_TOKENS, TOKENS, rows
from orchestrator.data.text.tokenizer import BEGIN, END, PAD, UNKNOWN
from orchestrator.data.types import Batch, Loader
from orchestrator.engine.shared import autocast, place_inputs, set_memory_format
from orchestrator.errors import DataError, RunFolderError
from orchestrator.evaluate import Step, evaluate, predict, samples_of
from orchestrator.host import Worker
from orchestrator.loop import Evaluation
from orchestrator.run_folder.model_file import ModelSpec, load_model, model_digest
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import Predictions, read_predictions, write_predictions
from orchestrator.run_folder.records import EventLog
from orchestrator.tasks.base import StepOutput, Task
from orchestrator.tasks.sequence_to_sequence import answer

_CHUNK = 64
"""Texts in one forward pass at most."""


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
    config = _config(paths)
    predictions = _predict(config, root, split, worker)
    write_predictions(path, predictions)
    if split == "test":
        _record_reading(paths)
    return predictions


def measure_run(*, worker: Worker, root: Path, split: str) -> Evaluation:
    """Every metric of a run's task on a split of the data it was trained on; nothing is kept.

    It is for tasks with an answer for each token; `predict_run` serves the others. A reading of the
    test split is recorded in the run's `events.jsonl`.

    Raises:
        RunFolderError: if the run has no trained model.
        DataError: if the data set has no such split, or is not the one of the training.
    """
    paths = RunPaths(root)
    config = _config(paths)
    network, spec = load_model(root)
    task: Task = build("task", config.task)
    with _reading(config, network, spec, split, worker) as (loader, step):
        found = evaluate(step, task, loader, split, worker, config.evaluate.batch_size)
    if split == "test":
        _record_reading(paths)
    return found


def answer_texts(root: Path, texts: Sequence[str]) -> list[str]:
    """A run's answers to texts, written greedily, token by token, on the CPU.

    Raises:
        RunFolderError: if the run has no trained model, or not one that answers with texts.
    """
    network, spec = load_model(root)
    if spec.tokenizer is None or len(spec.shape) != 2:
        raise RunFolderError(f"{root} does not answer with texts; name a run that was trained to")
    tokens = torch.from_numpy(rows(spec.tokenizer, texts, spec.shape[0]).tokens).long()
    with torch.no_grad():
        parts = [
            answer(network, {TOKENS: part, TARGET_TOKENS: part[:, :1]}, spec.shape[1])
            for part in torch.split(tokens, _CHUNK)
        ]
    return [spec.tokenizer.decode(row) for part in parts for row in part.tolist()]


def continue_text(
    root: Path, beginning: str, count: int, *, temperature: float = 0.0, seed: int = 0
) -> str:
    """Goes on with a text, token by token, on the CPU.

    Args:
        root: a language model's run.
        beginning: what the text begins with; it may be empty.
        count: tokens to write.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the softmax of the
            logits divided by it.
        seed: of the draws.

    Returns:
        The new tokens' text.

    Raises:
        RunFolderError: if the run has no trained model, or not a language model.
    """
    network, spec = load_model(root)
    if spec.tokenizer is None or not spec.per_token or len(spec.shape) != 1:
        raise RunFolderError(f"{root} is no language model; name a run that was trained as one")
    draws = torch.Generator().manual_seed(seed)
    numbers = [END, *spec.tokenizer.encode(beginning)]
    for _ in range(count):
        with torch.no_grad():
            logits_V = network(torch.tensor([numbers[-spec.shape[0] :]]))[0, -1].float()
        logits_V[[PAD, UNKNOWN, BEGIN]] = -torch.inf
        if temperature:
            p_V = (logits_V / temperature).softmax(-1)
            numbers.append(int(torch.multinomial(p_V, 1, generator=draws)))
        else:
            numbers.append(int(logits_V.argmax()))
    return spec.tokenizer.decode(numbers[-count:] if count else [])


def _config(paths: RunPaths) -> ExperimentConfig:
    """A run's file, its number of threads put to use."""
    config = load_config(paths.config)
    if isinstance(config.scale.cpus, int):
        torch.set_num_threads(config.scale.cpus)
    return config


def _predict(config: ExperimentConfig, root: Path, split: str, worker: Worker) -> Predictions:
    network, spec = load_model(root)
    if spec.per_token:
        raise DataError(
            f"{root} answers with a token for each token, and only answers of one label a sample "
            "are kept and compared; `orch evaluate` measures it alone"
        )
    with _reading(config, network, spec, split, worker) as (loader, step):
        task: Task = build("task", ClassifyTask())
        found = predict(step, task, loader, split, worker, config.evaluate.batch_size)
    assert found is not None
    return found


@contextmanager
def _reading(
    config: ExperimentConfig, network: nn.Module, spec: ModelSpec, split: str, worker: Worker
) -> Iterator[tuple[Loader, Step]]:
    """The loader of the data that a network was trained on, and its step in evaluation mode."""
    loader = _loader(config, worker)
    if not samples_of(loader.info, split):
        have = ", ".join(name for name, size in loader.info.sizes.items() if size)
        raise DataError(f"the data set has no samples in split {split!r}; it has {have}")
    if spec.data_digest != loader.info.digest:
        raise DataError(
            f"{config.name} was trained on other data ({spec.data_digest[:12]}) than "
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

    try:
        yield loader, step
    finally:
        loader.close()


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
