"""From a folder and the `serve:` section to what runs the network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.backend import Inputs, Probabilities
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.executors.base import Executor
from orchestrator.serve.executors.choose import Choice, powers_of_two
from orchestrator.serve.executors.decision import keep_decision, read_decision, situation
from orchestrator.serve.executors.front import Front
from orchestrator.serve.executors.measure import warm_up
from orchestrator.serve.executors.samples import sample_inputs
from orchestrator.serve.executors.ways import Workshop
from orchestrator.serve.predictor import Predictor, TextPredictor, answers_to, load_any


def load_executor(
    root: Path, name: str, version: str, config: ServeConfig, device: torch.device | str = "cpu"
) -> Executor:
    """Loads what answers for a run, student or ensemble folder, ready to run.

    What was measured is kept in the folder's `serve.json`, and used again as long as the model,
    the machine and the settings are the same; that the numbers are right is checked every time.

    Args:
        root: a folder with `model.json` or `ensemble.json`.
        name, version: what clients call it.
        config: executor, precision, tolerance, largest batch, cores, quorum and early exit.
        device: where it computes.

    Raises:
        RunFolderError: if there is no model, or an ensemble's member is missing or was changed.
        WeightsError: if weights do not fit their specification.
        UserError: if the executor and precision that the configuration asks for don't exist for
            this model, or change its answers by more than the tolerance.
    """
    predictor = load_any(root, name, device, version)
    threads, where = max(1, int(config.cpus)), torch.device(device)
    samples, origin = sample_inputs(root, predictor.card)
    workshop = Workshop(Front(predictor), samples, where, threads, config)
    choice = Choice(workshop, partial(_answers, predictor), origin)
    about = situation(root, config, str(where), threads)
    known = read_decision(root, about)
    if known is not None:
        again = choice.built(known.way, known.max_batch)
        if again is not None:
            warm_up(again, samples, powers_of_two(known.max_batch))
            return again
    executor, decision = choice.fastest()
    keep_decision(root, about, decision)
    return executor


def prepare(root: Path, name: str, version: str, config: ServeConfig) -> ModelCard:
    """Finds, before a server starts, what is wrong with a model or with what is asked for it.

    What is measured on the way is there when replicas load the model. Replicas on a GPU measure
    themselves.

    Args and errors: see `load_executor`.
    """
    if config.gpus:
        return load_any(root, name, version=version).card
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(config.cpus)))
    try:
        return load_executor(root, name, version, config).card
    finally:
        torch.set_num_threads(before)


def _answers(predictor: Predictor | TextPredictor, samples: Inputs) -> Probabilities:
    rows: Probabilities = answers_to(predictor, samples).numpy()
    return rows
