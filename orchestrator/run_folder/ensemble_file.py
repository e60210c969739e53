"""`ensemble.json`: which trained runs answer together, and with what weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orchestrator.errors import RunFolderError
from orchestrator.files import read_json, write_json
from orchestrator.run_folder.model_file import model_digest
from orchestrator.run_folder.predictions import Array

FORMAT = 1
NAME = "ensemble.json"

Combine = Literal["probabilities", "logits"]


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


def write_ensemble(folder: Path, ensemble: EnsembleFile) -> None:
    """Writes ``folder/ensemble.json``; members' paths are kept relative to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, _to_json(ensemble, folder.resolve()))


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
