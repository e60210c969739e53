"""What a file's run needs on each rank, what fits, and what to choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from orchestrator.config.engines import DeepSpeedEngineConfig, PipelineEngineConfig, copies
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.data.types import DataInfo
from orchestrator.engine.pipeline_cut import check_stages, choose_cut, parameter_counts
from orchestrator.errors import ResourceError, UserError
from orchestrator.networks import build_network, freeze, freeze_until
from orchestrator.plan.footprint import Footprint, Load, Section, pipeline, plain, zero
from orchestrator.plan.machine import Room, room_for
from orchestrator.plan.network import network_facts
from orchestrator.plan.profile import (
    Moment,
    Pretence,
    StepProfile,
    pretend,
    pretended_batch,
    profile_evaluation,
    profile_stages,
    profile_step,
)
from orchestrator.tasks.base import Task

STAGES = (0, 1, 2, 3)
"""ZeRO stages that a plan compares."""


@dataclass(frozen=True)
class Choice:
    """An engine and a micro-batch that fit.

    Attributes:
        zero_stage: None stands for the plain engine.
        micro_batch: samples of one forward pass.
        accumulation: micro-batches of one rank in a step; the effective batch stays.
        footprint: what it needs.
        why: a sentence for people.
    """

    zero_stage: int | None
    micro_batch: int
    accumulation: int
    footprint: Footprint
    why: str

    @property
    def changes(self) -> dict[str, Any]:
        """The same as dotted changes to the file."""
        changes: dict[str, Any] = {"train.micro_batch": self.micro_batch}
        if self.zero_stage is None:
            return changes | {"engine.type": "plain"}
        return changes | {"engine.type": "deepspeed", "engine.zero_stage": self.zero_stage}


class MemoryPlanner:
    """Plans one file's memory. Profiles of its network are made once for each micro-batch.

    Args:
        config: the file; an open precision or memory format is planned as fp32 and contiguous,
            which take the most.
        task: the file's.
        info: of the file's data.
        device: what a rank trains on.
        room: what there is on a node; by default this machine.

    Raises:
        UserError: if the network can't be built, or needs numbers to run.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        task: Task,
        info: DataInfo,
        device: torch.device,
        room: Room | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.workers = config.scale.workers
        self.room = room or room_for(device, self.workers)
        self.precision = "fp32" if config.train.precision == "auto" else config.train.precision
        self._channels_last = config.train.memory_format == "channels_last"
        self._task, self._info = task, info
        self._pretence = Pretence(device)
        self._profiles: dict[int, StepProfile] = {}
        with torch.device("meta"):
            self._network = self._build()
        with self._pretence():
            pretend(self._network, channels_last=self._channels_last)
            self.facts = network_facts(
                self._network,
                config.optimizer,  # type: ignore[arg-type]
                device=device,
                channels_last=self._channels_last,
            )

    @property
    def share(self) -> int:
        """Samples of a batch that one rank computes."""
        return math.ceil(self.config.train.batch_size / self.workers)

    @property
    def micro_batch(self) -> int:
        """Samples of one forward pass, as the file has it: by default the whole share."""
        asked = self.config.train.micro_batch
        return self.share if asked == "auto" else min(asked, self.share)

    def accumulation(self, micro_batch: int) -> int:
        """How many micro-batches of a size one rank computes in a step."""
        return math.ceil(self.share / micro_batch)

    def profile(self, micro_batch: int) -> StepProfile:
        """What one micro-batch needs."""
        if micro_batch not in self._profiles:
            with self._pretence():
                self._profiles[micro_batch] = profile_step(
                    self._network,
                    self._task,
                    pretended_batch(self._task, self._info, micro_batch),
                    device=self.device,
                    precision=self.precision,
                    channels_last=self._channels_last,
                )
        return self._profiles[micro_batch]

    def footprint(self, zero_stage: int | None, profile: StepProfile) -> Footprint:
        """What one rank holds with an engine; None stands for the plain one."""
        count = self.accumulation(profile.micro_batch)
        load = Load(self.workers, count, self.config.train.ema is not None)
        if zero_stage is None:
            return plain(self.facts, profile, load)
        engine = self.config.engine
        persist = getattr(engine, "persist_below", DeepSpeedEngineConfig().persist_below)
        return zero(zero_stage, self.facts, profile, load, persist_below=persist)

    def pipeline(self, engine: PipelineEngineConfig) -> Footprint:
        """What the fullest rank holds with the file's pipeline.

        Raises:
            ConfigError: if the network can't be cut so.
        """
        stages = check_stages(engine, self._network)
        with self._pretence():
            kept = profile_stages(
                self._network,
                pretended_batch(self._task, self._info, self.micro_batch),
                device=self.device,
                precision=self.precision,
                channels_last=self._channels_last,
            )
        counts, start, sections = parameter_counts(stages), 0, []
        for length in choose_cut(engine, stages):
            end = start + length
            sections.append(Section(sum(counts[start:end]), sum(kept[start:end])))
            start = end
        number = copies(engine, self.workers)
        count = math.ceil(self.config.train.batch_size / number / self.micro_batch)
        load = Load(number, count, self.config.train.ema is not None)
        profile = self.profile(self.micro_batch)
        return pipeline(self.facts, profile, load, sections, engine.zero_stage)

    def evaluation(self) -> int:
        """The most that one rank holds while it evaluates, with the plain engine's weights."""
        size = self.config.evaluate.batch_size
        largest = max((n for s, n in self._info.sizes.items() if s != "train"), default=size)
        with self._pretence():
            working = profile_evaluation(
                self._network,
                self._task,
                pretended_batch(self._task, self._info, min(size, max(largest, 1))),
                device=self.device,
                precision=self.precision,
                channels_last=self._channels_last,
            )
        held = self.footprint(None, self.profile(self.micro_batch))
        return held.parameters + held.optimizer + held.communication + working

    def choose(self) -> Choice:
        """The first that fits, of: plain, then ZeRO 1, 2, 3; then all with half the micro-batch.

        One worker has nobody to share state with, so it stays plain.

        Raises:
            ResourceError: if not even one sample a forward pass fits.
        """
        known = self.profile(self.micro_batch)
        for micro_batch in halvings(self.micro_batch):
            # Working memory falls at most in proportion: what does not fit then, never does.
            if not any(self._fits(one) for one in self._footprints(scaled(known, micro_batch))):
                continue
            try:
                profile = self.profile(micro_batch)
            except UserError:
                break  # smaller ones can't be run, such as one sample through a BatchNorm
            for stage, footprint in self._candidates(profile):
                if self._fits(footprint):
                    return self._choice(stage, micro_batch, footprint)
        raise ResourceError(self._refusal(scaled(known, 1)))

    def _candidates(self, profile: StepProfile) -> Iterator[tuple[int | None, Footprint]]:
        optimizer = self.config.optimizer
        sharded = self.workers > 1 and not getattr(optimizer, "whole_tensors", "")
        for stage in (None, *(STAGES[1:] if sharded else ())):
            yield stage, self.footprint(stage, profile)

    def _footprints(self, profile: StepProfile) -> list[Footprint]:
        return [footprint for _, footprint in self._candidates(profile)]

    def _fits(self, footprint: Footprint) -> bool:
        return footprint.peak <= self.room.each

    def _choice(self, stage: int | None, micro_batch: int, footprint: Footprint) -> Choice:
        count = self.accumulation(micro_batch)
        why = (
            f"{footprint.engine} with micro-batches of {micro_batch} ({count} a step and worker) "
            f"takes {gib(footprint.peak)} of {gib(self.room.each)} for each worker"
        )
        asked = self.micro_batch
        if (stage, micro_batch) != (None, asked):
            first = self.footprint(None, self.profile(asked))
            why += f"; {first.engine} with {asked} would take {gib(first.peak)}"
        return Choice(stage, micro_batch, count, footprint, why)

    def _refusal(self, single: StepProfile) -> str:
        least = min(self._footprints(single), key=lambda one: one.peak)
        more = "" if self.workers > 1 else "scale.workers > 1 so that ZeRO can share the state, "
        return (
            f"even one sample a forward pass takes at least {gib(least.peak)} on each worker "
            f"({least.engine}), but there is {gib(self.room.each)} for each ({self.room.what}); "
            f"use a smaller model or image, {more}or a machine with more memory"
        )

    def _build(self) -> nn.Module:
        config, info = self.config, self._info
        network = build_network(
            config.model,  # type: ignore[arg-type]
            outputs=self._task.outputs(info),
            shape=info.shape,
            vocabulary=info.vocabulary,
            per_token=self._task.per_token,
            load=False,
            recompute=config.train.checkpoint_activations,
        )
        freeze(network, config.model.freeze)  # type: ignore[attr-defined]
        phases = [one.parameters for one in config.train.unfreeze]
        freeze_until(network, phases, len(phases))  # the last phase learns the most
        return network


def halvings(start: int) -> Iterator[int]:
    """start, start // 2, … 1."""
    while start >= 1:
        yield start
        start //= 2


def scaled(profile: StepProfile, micro_batch: int) -> StepProfile:
    """A profile of another micro-batch, were all its working memory in proportion to it."""
    part = micro_batch / profile.micro_batch

    def of(size: int) -> int:
        return int(size * part)

    moments = tuple(Moment(m.parameter, of(m.peak), of(m.live)) for m in profile.moments)
    return replace(
        profile,
        micro_batch=micro_batch,
        samples=of(profile.samples),
        kept=of(profile.kept),
        forward=of(profile.forward),
        moments=moments,
        answers=of(profile.answers),
        flops=of(profile.flops),
    )


def gib(size: int) -> str:
    """Bytes for people, with three digits: GiB, or MiB below one."""
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    value = size / unit
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
