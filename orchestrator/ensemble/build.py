"""From trained runs to `ensemble.json`, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.base import build
from orchestrator.config.pipeline import EnsembleConfig
from orchestrator.ensemble.combine import Combine, check_alike, combine
from orchestrator.ensemble.diversity import diversity
from orchestrator.errors import DataError, RunFolderError
from orchestrator.files import read_json, write_json
from orchestrator.model_file import ModelSpec, model_digest, read_spec
from orchestrator.predictions import Array, Predictions, accuracy, nll, read_predictions
from orchestrator.run_folder import RunPaths

FORMAT = 1
NAME = "ensemble.json"


@dataclass(frozen=True)
class Member:
    """One trained run of an ensemble.

    Attributes:
        path: the run's folder.
        sha256: of its `model.safetensors`.
        weight: its share of the answer; an ensemble's weights sum to 1.
    """

    path: Path
    sha256: str
    weight: float


@dataclass(frozen=True)
class EnsembleFile:
    """What `ensemble.json` holds.

    Attributes:
        method: the `ensemble.method` section that chose the members.
        combine: what is averaged.
        split_digest: of the split that all members were trained on.
        select: accuracy and NLL of the ensemble on the select split.
        best_single: the same of the best candidate (by accuracy, then NLL), and its path.
        diversity: the members' mean pairwise measures on the select split.
    """

    members: tuple[Member, ...]
    method: Mapping[str, Any]
    combine: Combine
    split_digest: str
    select: Mapping[str, float]
    best_single: Mapping[str, Any] = field(default_factory=dict)
    diversity: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def weights(self) -> Array:
        """float64[M]."""
        return np.array([member.weight for member in self.members], dtype=np.float64)


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
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / NAME, _to_json(ensemble, out.resolve()))
    return ensemble


def read_ensemble(path: Path) -> EnsembleFile:
    """Reads an ensemble and checks that its members are still the models that were chosen.

    Args:
        path: the ensemble's folder, or its `ensemble.json`.

    Raises:
        RunFolderError: if there is none, it is damaged, or a member is gone or was changed.
    """
    file = path if path.name == NAME else path / NAME
    try:
        ensemble = _from_json(read_json(file), file.parent.resolve())
    except FileNotFoundError:
        raise RunFolderError(
            f"{file.parent} has no ensemble; make one with `orch ensemble`"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{file} is damaged ({error!r}); make it again with `orch ensemble`"
        ) from None
    for member in ensemble.members:
        _check_member(file, member)
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


def _check_member(file: Path, member: Member) -> None:
    try:
        digest = model_digest(member.path)
    except OSError:
        raise RunFolderError(
            f"{file} names {member.path}, but its model is gone; put it back, "
            "or make the ensemble again with `orch ensemble`"
        ) from None
    if digest != member.sha256:
        raise RunFolderError(
            f"{member.path} is not the model that {file} was made of: its sha256 is "
            f"{digest[:12]}, not {member.sha256[:12]}; make it again with `orch ensemble`"
        )


# --- content -------------------------------------------------------------------------------


def _metrics(probabilities: Array, labels: Array) -> dict[str, float]:
    return {"accuracy": accuracy(probabilities, labels), "nll": nll(probabilities, labels)}


def _best_single(folders: Sequence[Path], found: Sequence[Predictions]) -> dict[str, Any]:
    metrics = [_metrics(one.probabilities(), one.labels) for one in found]
    place = min(range(len(found)), key=lambda i: (-metrics[i]["accuracy"], metrics[i]["nll"]))
    return {"path": folders[place], **metrics[place]}


def _to_json(ensemble: EnsembleFile, folder: Path) -> dict[str, Any]:
    best = dict(ensemble.best_single)
    return {
        "format": FORMAT,
        "members": [
            {
                "path": os.path.relpath(member.path, folder),
                "sha256": member.sha256,
                "weight": member.weight,
            }
            for member in ensemble.members
        ],
        "method": dict(ensemble.method),
        "combine": ensemble.combine,
        "split_digest": ensemble.split_digest,
        "select": dict(ensemble.select),
        "best_single": best | {"path": os.path.relpath(best["path"], folder)},
        "diversity": dict(ensemble.diversity),
    }


def _from_json(content: Mapping[str, Any], folder: Path) -> EnsembleFile:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']} is not {FORMAT}")
    if content["combine"] not in ("probabilities", "logits"):
        raise ValueError(f"combine {content['combine']!r} is neither probabilities nor logits")
    members = tuple(
        Member((folder / one["path"]).resolve(), str(one["sha256"]), float(one["weight"]))
        for one in content["members"]
    )
    weights = [member.weight for member in members]
    if not weights or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights are above 0 and sum to 1, but are {weights}")
    best = dict(content.get("best_single", {}))
    if "path" in best:
        best["path"] = (folder / best["path"]).resolve()
    return EnsembleFile(
        members=members,
        method=content["method"],
        combine=content["combine"],
        split_digest=content["split_digest"],
        select=content["select"],
        best_single=best,
        diversity=content.get("diversity", {}),
    )
