"""What the ranks of a pipeline tell each other beside the pipeline, and batches cut for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.data.types import Batch
from orchestrator.tasks.base import Outputs, StepOutput


def share_output(
    output: StepOutput | None, source: int, group: dist.ProcessGroup, device: torch.device
) -> StepOutput:
    """The last rank's output, on every rank of the pipeline.

    Args:
        output: there; None elsewhere.
        source: the last rank's number in the whole group.
    """
    mine: dict[str, Tensor] = {}
    if output is not None:
        mine = {"loss": output.loss, "outputs": output.outputs}
        if output.answers is not None:
            mine["answers"] = output.answers
        mine |= {f"metric {name}": value for name, value in output.metrics.items()}
    about = [[(name, tuple(one.shape), one.dtype) for name, one in mine.items()]]
    dist.broadcast_object_list(about, src=source, group=group, device=device)
    found: dict[str, Tensor] = {}
    for name, shape, dtype in about[0]:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if output is not None:
            tensor.copy_(mine[name])
        if tensor.numel():
            dist.broadcast(tensor, src=source, group=group)
        found[name] = tensor
    metrics = {
        name.removeprefix("metric "): value
        for name, value in found.items()
        if name.startswith("metric ")
    }
    return StepOutput(found["loss"], found["outputs"], metrics, found.get("answers"))


def share_names(
    names: Sequence[str] | None, source: int, group: dist.ProcessGroup, device: torch.device
) -> tuple[str, ...]:
    """The last rank's names, on every rank of the pipeline."""
    box = [names]
    dist.broadcast_object_list(box, src=source, group=group, device=device)
    return tuple(box[0] or ())


def share_scalars(
    values: Mapping[str, Tensor],
    names: Sequence[str],
    source: int,
    group: dist.ProcessGroup,
    device: torch.device,
) -> dict[str, Tensor]:
    """The last rank's scalars of these names, on every rank of the pipeline."""
    if not names:
        return {}
    if values:
        flat = torch.stack([values[name].float() for name in names])
    else:
        flat = torch.empty(len(names), device=device)
    dist.broadcast(flat, src=source, group=group)
    return dict(zip(names, flat.unbind(), strict=True))


def chunks(batch: Batch, most: int) -> list[Batch]:
    """The batch in at most so many parts of nearly one size, none empty."""
    count = min(len(batch), most)
    cuts = [len(batch) * number // count for number in range(count + 1)]

    def part(tensors: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
        return {name: tensor[start:end] for name, tensor in tensors.items()}

    return [
        Batch(batch.ids[a:b], part(batch.inputs, a, b), part(batch.targets, a, b))
        for a, b in itertools.pairwise(cuts)
    ]


def joined(outputs: Sequence[Outputs], size: int) -> Outputs:
    """The outputs of a batch's parts as the whole's; of its first `size` samples."""
    if isinstance(outputs[0], Tensor):
        return torch.cat([one for one in outputs if isinstance(one, Tensor)])[:size]
    return tuple(torch.cat(column)[:size] for column in zip(*outputs, strict=True))
