"""Reading a split with a model: metrics while training, predictions for what comes after."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.descriptors import (
    Descriptors,
    image_descriptors,
    joined,
    token_descriptors,
)
from orchestrator.data.types import Batch, DataInfo, Loader
from orchestrator.errors import ConfigError, Problem, suggest
from orchestrator.host import Worker
from orchestrator.loop import Evaluation
from orchestrator.run_folder.predictions import Predictions
from orchestrator.tasks.base import StepOutput, Task

Step = Callable[[Task, Batch], StepOutput]
"""Forward and loss of one batch without gradients, such as `Engine.evaluate_step`."""


def evaluate(
    step: Step, task: Task, loader: Loader, split: str, worker: Worker, batch_size: int
) -> Evaluation:
    """Every metric of the task on a split, over all ranks.

    Returns:
        Values named ``<split>/<metric>``, the mean ``<split>/loss`` among them.
    """
    metrics = task.metrics(loader.info).to(worker.device)
    for metric in metrics.values():
        metric.process_group = worker.group
    total = torch.zeros(2, dtype=torch.float64, device=worker.device)
    for batch in _in_step(loader, split, worker, batch_size):
        output = step(task, batch)
        if len(batch):
            task.update(metrics, output, batch)
            weight = task.weight(batch)
            count = total.new_tensor(len(batch)) if weight is None else weight.double()
            total += torch.stack([output.loss.double() * count, count])
    loss_sum, answers = worker.sum(total).tolist()
    values = {name: float(value) for name, value in metrics.compute().items()}
    values["loss"] = loss_sum / answers
    return Evaluation(split, {f"{split}/{name}": value for name, value in sorted(values.items())})


def check_monitor(monitor: str, task: Task, info: DataInfo) -> None:
    """Refuses a monitored metric that no evaluation will report, such as top5 of five classes.

    Raises:
        ConfigError: naming those that there will be.
        DataError: if the data has other answers than the task learns.
    """
    task.outputs(info)
    metrics = task.metrics(info)
    for metric in metrics.values():
        metric.sync_on_compute = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metrics that have seen no samples
            # Asked for values, as one metric may report several, by names of its own.
            names = {"loss", *map(str, [*metrics.compute(), *metrics.keys()])}
            values = [metric.compute() for metric in metrics.values()]
    except Exception:  # whatever a user's metric makes of no samples; the first evaluation tells
        return
    if any(isinstance(value, Mapping) and not value for value in values):
        return  # names come with the samples; the first evaluation tells
    if monitor.partition("/")[2] not in names:
        raise unreported(monitor, names)


def unreported(monitor: str, names: Iterable[str]) -> ConfigError:
    """What to raise where evaluations have these metrics, but not the one that decides."""
    name = monitor.partition("/")[2]
    message = f"evaluations of this run report no {name!r}; {suggest(name, names)}"
    return ConfigError([Problem(message, "evaluate.monitor")])


def predict(
    step: Step, task: Task, loader: Loader, split: str, worker: Worker, batch_size: int
) -> Predictions | None:
    """Logits of every sample of a split, in the order of ids, on rank 0; None elsewhere."""
    ids: list[Tensor] = []
    labels: list[Tensor] = []
    logits: list[Tensor] = []
    for batch in _in_step(loader, split, worker, batch_size):
        outputs = step(task, batch).outputs
        ids.append(batch.ids.cpu())
        labels.append(batch.targets["label"].cpu())
        logits.append(outputs.float().cpu())
    mine = tuple(torch.cat(parts).numpy() for parts in (ids, labels, logits))
    gathered = worker.gather(mine)
    if gathered is None:
        return None
    all_ids, all_labels, all_logits = (
        np.concatenate(column) for column in zip(*gathered, strict=True)
    )
    order = np.argsort(all_ids, kind="stable")
    return Predictions(all_ids[order], all_labels[order], all_logits[order])


class Described:
    """A step that also says what the inputs of its batches look like.

    Args:
        step: what is done with each batch.
        info: of the data.
        samples: of a split of this size at most `MOST_DESCRIBED` are described, evenly chosen.
    """

    MOST_DESCRIBED = 4096

    def __init__(self, step: Step, info: DataInfo, samples: int) -> None:
        self._step, self._info = step, info
        self._every = math.ceil(samples / self.MOST_DESCRIBED)
        self._seen = 0
        self._parts: list[Descriptors] = []

    def __call__(self, task: Task, batch: Batch) -> StepOutput:
        """Describes the batch, then takes the step."""
        chosen = slice(-self._seen % self._every, None, self._every)
        self._seen += len(batch)
        if len(batch.ids[chosen]):
            self._parts.append(self._described(batch, chosen))
        return self._step(task, batch)

    def _described(self, batch: Batch, chosen: slice) -> Descriptors:
        if self._info.tokenizer is not None:
            return token_descriptors(batch.inputs["tokens"][chosen].cpu().numpy())
        images = batch.inputs["image"][chosen].float().cpu()
        mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (self._info.mean, self._info.std))
        return image_descriptors((images * std + mean).numpy())

    def gathered(self, worker: Worker) -> Descriptors | None:
        """Every rank's descriptors, on rank 0; None elsewhere."""
        ranks = worker.gather(joined(self._parts))
        return None if ranks is None else joined([one for one in ranks if one])


def _in_step(loader: Loader, split: str, worker: Worker, batch_size: int) -> Iterator[Batch]:
    """A rank's batches, then empty ones until every rank had as many.

    Engines whose parameters are sharded meet in every forward pass, so no rank may have fewer.
    """
    most = math.ceil(math.ceil(samples_of(loader.info, split) / worker.world_size) / batch_size)
    batch: Batch | None = None
    count = 0
    for count, batch in enumerate(loader.evaluate(split, batch_size), start=1):  # noqa: B007
        yield batch
    if batch is None:
        return
    empty = Batch(
        batch.ids[:0],
        {name: tensor[:0] for name, tensor in batch.inputs.items()},
        {name: tensor[:0] for name, tensor in batch.targets.items()},
    )
    for _ in range(most - count):
        yield empty


def samples_of(info: DataInfo, split: str) -> int:
    """How many samples a split has; 0 where the source has no such split."""
    return info.sizes.get(split, 0)
