"""From trained runs to `ensemble.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.base import build
from orchestrator.config.pipeline import EnsembleConfig
from orchestrator.ensemble.combine import check_alike, combine
from orchestrator.ensemble.diversity import diversity
from orchestrator.errors import DataError, RunFolderError
from orchestrator.run_folder.ensemble_file import EnsembleFile, Member, write_ensemble
from orchestrator.run_folder.model_file import ModelSpec, model_digest, read_spec
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import Array, Predictions, accuracy, nll, read_predictions


def build_ensemble(candidates: Sequence[Path], config: EnsembleConfig, out: Path) -> EnsembleFile:
    """Chooses members among finished runs on the select split, and writes ``out/ensemble.json``.

    Args:
        candidates: run folders; one that is named twice counts once.
        out: the ensemble's folder; made when it is not there.

    Raises:
        RunFolderError: if a run has no model or no predictions on select, or if the runs were
            trained on different splits or label sets.
        DataError: if predictions are damaged.
    """
    folders = list(dict.fromkeys(path.resolve() for path in candidates))
    if not folders:
        raise RunFolderError("an ensemble needs at least one finished run, but got none")
    specs = [read_spec(folder) for folder in folders]
    _check_comparable(folders, specs)
    found = [read_predictions(RunPaths(folder).predictions("select")) for folder in folders]
    _check_answers(folders, found)
    picked: list[tuple[int, float]] = build(
        "ensemble", config.method, members=found, size=config.size, combine=config.combine
    )
    chosen = [found[place] for place, _ in picked]
    together = combine(chosen, [weight for _, weight in picked], config.combine)
    ensemble = EnsembleFile(
        members=tuple(
            Member(folders[place], model_digest(folders[place]), weight) for place, weight in picked
        ),
        method=config.method.model_dump(mode="json"),
        combine=config.combine,
        split_digest=specs[0].split_digest,
        select=_metrics(together, found[0].labels),
        best_single=_best_single(folders, found),
        diversity=diversity(chosen).summary(),
    )
    write_ensemble(out, ensemble)
    return ensemble


def ensemble_predictions(ensemble: EnsembleFile, split: str) -> Predictions:
    """The ensemble's answers to a split, from its members' prediction files.

    Returns:
        Predictions whose logits are log-probabilities, so that their softmax is the answer.

    Raises:
        RunFolderError: if a member has no predictions on the split.
        DataError: if the files are damaged or answer different samples.
    """
    found = [read_predictions(RunPaths(one.path).predictions(split)) for one in ensemble.members]
    probabilities = combine(found, ensemble.weights, ensemble.combine)
    floor = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(probabilities, floor)).astype(np.float32)
    return Predictions(found[0].ids, found[0].labels, logits)


# --- checks --------------------------------------------------------------------------------


def _check_comparable(folders: Sequence[Path], specs: Sequence[ModelSpec]) -> None:
    first = specs[0]
    for folder, spec in zip(folders[1:], specs[1:], strict=True):
        if spec.split_digest != first.split_digest:
            raise RunFolderError(
                "members must be trained on the same split, or one has seen what another is "
                f"judged on, but {folders[0]} has split {first.split_digest[:12]} and "
                f"{folder} {spec.split_digest[:12]}; use runs of the same data.split"
            )
        if spec.label_names != first.label_names:
            raise RunFolderError(
                f"members must know the same labels, but {folders[0]} has "
                f"{_names(first)} and {folder} {_names(spec)}"
            )


def _names(spec: ModelSpec) -> str:
    more = ", …" if len(spec.label_names) > 5 else ""
    return f"{len(spec.label_names)} ({', '.join(spec.label_names[:5])}{more})"


def _check_answers(folders: Sequence[Path], found: Sequence[Predictions]) -> None:
    try:
        check_alike(found)
    except DataError as error:
        named = "; ".join(f"{place}: {folder}" for place, folder in enumerate(folders, start=1))
        raise DataError(f"{error} ({named})") from None
    if not len(found[0]):
        raise DataError("the select split is empty; set data.split.select above 0 to choose on it")


# --- content -------------------------------------------------------------------------------


def _metrics(probabilities: Array, labels: Array) -> dict[str, float]:
    return {"accuracy": accuracy(probabilities, labels), "nll": nll(probabilities, labels)}


def _best_single(folders: Sequence[Path], found: Sequence[Predictions]) -> dict[str, Any]:
    metrics = [_metrics(one.probabilities(), one.labels) for one in found]
    place = min(range(len(found)), key=lambda i: (-metrics[i]["accuracy"], metrics[i]["nll"]))
    return {"path": folders[place], **metrics[place]}
