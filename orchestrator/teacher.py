"""A teacher's answers, joined to a student's training batches as targets.

The pair of input and answer matters: a student that is shown a cropped image learns more from what
the teacher says of that crop than from what it says of the whole ("function matching", Beyer et
al., Knowledge distillation: A good teacher is patient and consistent, 2022). Axes: B samples,
K classes, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data.types import Batch, DataInfo, GlobalBatch, Loader
from orchestrator.engine.shared import autocast, place_inputs, set_memory_format
from orchestrator.errors import DataError, RunFolderError
from orchestrator.host import Worker
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.model_file import ModelSpec, load_model, read_spec
from orchestrator.run_folder.paths import RunPaths, Target
from orchestrator.run_folder.predictions import read_predictions
from orchestrator.tasks.distill import TEACHER


@dataclass(frozen=True)
class Teacher:
    """Who a student learns from.

    Attributes:
        folder: the run's or the ensemble's.
        members: run folders with their weights, which sum to 1.
        combine: what of the members' answers is averaged: `probabilities` or `logits`.
    """

    folder: Path
    members: Sequence[tuple[Path, float]]
    combine: str = "probabilities"


def find_teacher(target: Target) -> Teacher:
    """The teacher that a user named; a sweep stands for its ensemble.

    Raises:
        RunFolderError: if a sweep has no ensemble, or the ensemble is damaged.
    """
    if target.kind == "run":
        return Teacher(target.path, [(target.path, 1.0)])
    folder = target.paths.ensemble if target.kind == "sweep" else target.path
    if not (folder / "ensemble.json").exists():
        raise RunFolderError(f"{target.path} has no ensemble; make one with `orch ensemble`")
    ensemble = read_ensemble(folder)
    members = [(member.path, member.weight) for member in ensemble.members]
    return Teacher(folder, members, ensemble.combine)


def check_teacher(teacher: Teacher, info: DataInfo) -> None:
    """Checks that a teacher fits the data that a student learns.

    Raises:
        DataError: if a member takes other images, knows other labels, or was trained on another
            split of the same data, so that it may have learned from samples that the student is
            judged on.
    """
    for root, _ in teacher.members:
        spec = read_spec(root)
        if (spec.shape, spec.label_names) != (info.shape, info.label_names):
            raise DataError(
                f"the teacher {root} was trained on images of shape {spec.shape} with "
                f"{len(spec.label_names)} labels, but data.source gives {info.shape} with "
                f"{len(info.label_names)}; both must agree"
            )
        if spec.data_digest == info.digest and spec.split_digest != info.split_digest:
            raise DataError(
                f"the teacher {root} was trained on another split of the same data, so it may "
                "have learned from samples that the student is judged on; use its data.split"
            )


# --- asked about what the student sees -------------------------------------------------------


class LiveTeacher:
    """A teacher's networks on the student's device, in evaluation mode, without gradients.

    Args:
        teacher: whose networks are loaded.
        info: the data that the student learns; its batches are normalised by it.
        worker: the student's rank.

    Raises:
        RunFolderError: if a member is damaged.
        DataError: as `check_teacher`.
    """

    def __init__(self, teacher: Teacher, info: DataInfo, worker: Worker) -> None:
        check_teacher(teacher, info)
        self._combine = teacher.combine
        self._members = [_Member(root, weight, info, worker) for root, weight in teacher.members]

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """What the teacher says of a batch of normalised images.

        Returns:
            float32[B, K] whose softmax is the teacher's answer.
        """
        if len(self._members) == 1:
            return self._members[0].logits(batch)
        if self._combine == "logits":
            return torch.stack([one.weight * one.logits(batch) for one in self._members]).sum(0)
        # log Σ w·p in log space, so that small probabilities stay exact.
        parts = [math.log(one.weight) + one.logits(batch).log_softmax(-1) for one in self._members]
        return torch.stack(parts).logsumexp(0)


class _Member:
    """One network, fed as it was in its own training."""

    def __init__(self, root: Path, weight: float, info: DataInfo, worker: Worker) -> None:
        network, spec = load_model(root)
        self.weight = weight
        self._device, self._precision = worker.device, spec.precision
        self._channels_last = spec.memory_format == "channels_last"
        self._network: nn.Module = network.requires_grad_(False).to(worker.device)
        if self._channels_last:
            set_memory_format(self._network, torch.channels_last)
        self._renormalise = _between(info, spec, worker.device)

    def logits(self, batch: Batch) -> Tensor:
        """float32[B, K]."""
        batch = place_inputs(batch, self._device, self._channels_last)
        image_BCHW = batch.inputs["image"]
        if self._renormalise is not None:
            scale, shift = self._renormalise
            image_BCHW = image_BCHW * scale + shift
        with autocast(self._device, self._precision):
            logits: Tensor = self._network(image_BCHW)
        return logits.float()


def _between(info: DataInfo, spec: ModelSpec, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, [C, 1, 1] each, from the student's normalisation to a member's."""
    if (tuple(info.mean), tuple(info.std)) == (tuple(spec.mean), tuple(spec.std)):
        return None
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
        for values in (info.mean, info.std, spec.mean, spec.std)
    )
    return std / own_std, (mean - own_mean) / own_std


class TaughtLoader:
    """A loader whose training batches carry the teacher's answers to what they show.

    Follows the `Loader` protocol; augmented and mixed images are asked about as they are.
    """

    def __init__(self, loader: Loader, teacher: LiveTeacher) -> None:
        self.info = loader.info
        self._loader, self._teacher = loader, teacher

    @property
    def steps_per_epoch(self) -> int:
        """See `Loader.steps_per_epoch`."""
        return self._loader.steps_per_epoch

    def train(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """See `Loader.train`."""
        for batch in self._loader.train(epoch, start):
            taught = tuple(self._taught(micro) for micro in batch.micro_batches)
            yield replace(batch, micro_batches=taught)

    def evaluate(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        """See `Loader.evaluate`."""
        return self._loader.evaluate(split, batch_size)

    def close(self) -> None:
        """See `Loader.close`."""
        self._loader.close()

    def _taught(self, batch: Batch) -> Batch:
        if not len(batch):
            return batch
        return replace(batch, targets={**batch.targets, TEACHER: self._teacher.logits(batch)})


# --- asked once about the plain images -------------------------------------------------------


def stored_answers(teacher: Teacher) -> np.ndarray:
    """What the teacher said of every plain training sample, by the sample's id.

    Returns:
        float32[N, K] up to the last training sample; rows of held-out samples are NaN.

    Raises:
        DataError: if the teacher has not answered for the train split.
    """
    path = RunPaths(teacher.folder).predictions("train")
    if not path.exists():
        raise DataError(
            f"the teacher {teacher.folder} has no predictions on the train split; "
            "use `orch distill CONFIG --teacher …`, which makes them, or teacher_sees: augmented"
        )
    predictions = read_predictions(path)
    rows = np.full(
        (int(predictions.ids.max()) + 1, predictions.logits.shape[1]), np.nan, np.float32
    )
    rows[predictions.ids] = predictions.logits
    return rows
