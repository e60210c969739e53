"""A plan's figures, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.errors import ResourceError
from orchestrator.plan.memory_plan import STAGES, MemoryPlanner


@dataclass(frozen=True)
class MemoryReport:
    """A plan's figures, all in bytes.

    Attributes:
        device: of a rank.
        precision, memory_format: what was planned; `auto` as fp32 and contiguous.
        micro_batch, accumulation: as the file has them.
        engines: each engine with the file's micro-batch, and whether it fits.
        evaluation: the most that a rank holds while it evaluates, with the plain engine.
        room: what a rank may take, and where the number comes from.
        choice: what fits, as changes to the file; empty where nothing does, `why` says why.
        flops: floating-point operations of one optimizer step over all workers.
    """

    device: str
    precision: str
    memory_format: str
    micro_batch: int
    accumulation: int
    engines: tuple[Mapping[str, Any], ...]
    evaluation: int
    room: Mapping[str, Any]
    choice: Mapping[str, Any]
    why: str
    flops: int


def report(planner: MemoryPlanner) -> MemoryReport:
    """Everything that a plan has to say about memory and work."""
    config, micro_batch = planner.config, planner.micro_batch
    profile = planner.profile(micro_batch)
    whole = getattr(config.optimizer, "whole_tensors", "")
    stages = (None, 0) if whole else (None, *STAGES)
    footprints = [planner.footprint(stage, profile) for stage in stages]
    if isinstance(config.engine, PipelineEngineConfig):
        footprints.append(planner.pipeline(config.engine))
    room = planner.room
    try:
        choice = planner.choose()
        changes, why = choice.changes, choice.why
    except ResourceError as error:
        changes, why = {}, str(error)
    train = config.train
    return MemoryReport(
        device=str(planner.device),
        precision=planner.precision,
        memory_format="contiguous" if train.memory_format == "auto" else train.memory_format,
        micro_batch=micro_batch,
        accumulation=planner.accumulation(micro_batch),
        engines=tuple({**vars(one), "fits": one.peak <= room.each} for one in footprints),
        evaluation=planner.evaluation(),
        room={"each": room.each, "total": room.total, "workers": room.workers, "what": room.what},
        choice=changes,
        why=why,
        flops=round(profile.flops * train.batch_size / micro_batch),
    )
