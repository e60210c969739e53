"""How many bytes one rank holds under each engine, and the most that it holds at once.

What a micro-batch needs comes from a `StepProfile`; what an engine keeps beside it follows from how
the engine works, as written beside each formula (ZeRO: Rajbhandari et al., 2020, and DeepSpeed's
own buffers). Weights, gradients and master copies are fp32: lower precisions are autocast. A peak
is the largest sum at any moment, so it is below the sum of the columns: gradients come while
activations go.

P are the bytes of the trainable parameters, N the ranks that share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.engine.deepspeed_setup import BUCKET_ELEMENTS
from orchestrator.plan.network import FLOAT, NetworkFacts
from orchestrator.plan.profile import StepProfile

PREFETCH_ELEMENTS = 50_000_000
"""Weights that stage 3 gathers ahead: DeepSpeed's `stage3_prefetch_bucket_size`."""


@dataclass(frozen=True)
class Load:
    """What one rank is given in a step.

    Attributes:
        workers: ranks that share the state: N.
        micro_batches: how many it computes one after another.
        averaged: keeps a moving average of the weights beside them.
    """

    workers: int
    micro_batches: int
    averaged: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank.

    Attributes:
        engine: what the table calls it.
        parameters: weights, model buffers, and copies of the weights that the engine keeps.
        gradients: as long as they are kept.
        optimizer: its state.
        activations: what one micro-batch leaves for its backward pass.
        communication: buckets that gradients and parameters travel in.
        samples: inputs and targets.
        peak: the most at once.
    """

    engine: str
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    communication: int
    samples: int
    peak: int


def plain(facts: NetworkFacts, profile: StepProfile, load: Load) -> Footprint:
    """One process, or DistributedDataParallel, which has a copy of every gradient in buckets."""
    total = facts.trainable_bytes
    buckets = total if load.workers > 1 else 0
    state = facts.optimizer_bytes(sum(facts.parameters))
    held = _weights(facts, load) + buckets + state + _samples(profile, load)
    working = _passes(facts, profile, load)
    return Footprint(
        "plain" if load.workers == 1 else "ddp",
        parameters=_weights(facts, load),
        gradients=total,
        optimizer=state,
        activations=profile.kept,
        communication=buckets,
        samples=_samples(profile, load),
        peak=held + max(working, total + facts.update_bytes(facts.parameters)),
    )


def zero(
    stage: int, facts: NetworkFacts, profile: StepProfile, load: Load, *, persist_below: int
) -> Footprint:
    """DeepSpeed with a ZeRO stage from 0 to 3.

    Args:
        persist_below: up to so many elements, stage 3 keeps a parameter whole on every rank.
    """
    if stage == 3:
        return _zero_3(facts, profile, load, persist_below)
    return (_zero_0, _zero_1, _zero_2)[stage](facts, profile, load)


def _zero_0(facts: NetworkFacts, profile: StepProfile, load: Load) -> Footprint:
    """Gradients are copied into one flat bucket when all are there, even by one worker."""
    alone = plain(facts, profile, replace(load, workers=1))
    total = facts.trainable_bytes
    held = alone.parameters + alone.optimizer + alone.samples
    # Gradients in channels-last order are made contiguous before they are laid side by side.
    reducing = held + total + total + facts.rearranged_bytes
    return replace(alone, engine="zero-0", communication=total, peak=max(alone.peak, reducing))


def _zero_1(facts: NetworkFacts, profile: StepProfile, load: Load) -> Footprint:
    """The optimizer's state is sharded, and so is a second, fp32 copy of the weights.

    A bucket is there from the first gradient on, until all are reduced.
    """
    total, shard = facts.trainable_bytes, facts.trainable_bytes // load.workers
    bucket = _bucket(facts)
    weights, state = _weights(facts, load) + shard, facts.optimizer_bytes(shard // FLOAT)
    held = weights + state + _samples(profile, load)
    peak = _passes(facts, profile, load, bucket)
    # The step lays the shard's gradients side by side once more.
    stepping = _owned(facts, load.workers) + _stepping(facts, load.workers)
    return Footprint(
        "zero-1",
        parameters=weights,
        gradients=total,
        optimizer=state,
        activations=profile.kept,
        communication=bucket,
        samples=_samples(profile, load),
        peak=held + max(peak, stepping),
    )


def _zero_2(facts: NetworkFacts, profile: StepProfile, load: Load) -> Footprint:
    """Gradients go into the bucket as they come; of what is reduced a rank keeps its shard.

    A full bucket is copied for the reduction.
    """
    shard = facts.trainable_bytes // load.workers
    bucket, owned = _bucket(facts), _owned(facts, load.workers)
    weights, state = _weights(facts, load) + shard, facts.optimizer_bytes(shard // FLOAT)
    held = weights + state + _samples(profile, load)
    peak = max(_reduced_passes(facts, profile, load), owned + _stepping(facts, load.workers))
    return Footprint(
        "zero-2",
        parameters=weights,
        gradients=owned,
        optimizer=state,
        activations=profile.kept,
        communication=bucket,
        samples=_samples(profile, load),
        peak=held + peak,
    )


def _zero_3(facts: NetworkFacts, profile: StepProfile, load: Load, persist_below: int) -> Footprint:
    """Weights are sharded too, and gathered for the passes.

    DeepSpeed gathers up to `PREFETCH_ELEMENTS` ahead and keeps what it gathered from the forward to
    the backward pass while both are within 10⁹ elements, so that small networks are whole until
    then. The flat tensor that weights arrive in stays until the last of them is used.
    """
    total, shard = facts.trainable_bytes, facts.trainable_bytes // load.workers
    bucket, state = _bucket(facts), facts.optimizer_bytes(shard // FLOAT)
    alone = load.workers == 1  # whose shard is the parameter itself
    small = [size for size in facts.parameters if size <= persist_below and not alone]
    whole = sum(small) * FLOAT
    weights = _weights(facts, load) - total + 2 * shard + whole
    held = weights + shard + state + bucket + _samples(profile, load)
    gathered = 0 if alone else total - whole
    arriving = min(gathered, PREFETCH_ELEMENTS * FLOAT)
    answers = profile.answers if load.micro_batches > 1 else 0
    passing = gathered + answers + max(arriving + profile.kept, profile.working)
    left = profile.moments[-1].live if profile.moments else 0
    # Gradients are laid side by side to be reduced, and gloo reduces a copy.
    peak = max(passing, 2 * min(total, bucket) + left, _stepping(facts, load.workers))
    return Footprint(
        "zero-3",
        parameters=weights,
        gradients=shard,
        optimizer=state,
        activations=profile.kept,
        communication=bucket + gathered,
        samples=_samples(profile, load),
        peak=held + peak,
    )


@dataclass(frozen=True)
class Section:
    """What one rank of a pipeline holds.

    Attributes:
        parameters: elements.
        kept: bytes that its stages leave of one micro-batch for the backward pass.
    """

    parameters: int
    kept: int


def pipeline(
    facts: NetworkFacts,
    profile: StepProfile,
    load: Load,
    sections: Sequence[Section],
    zero_stage: int,
) -> Footprint:
    """The fullest rank of a pipeline, whose first ranks hold the most micro-batches at once.

    Of p ranks, rank s has at most p − s micro-batches under way (1F1B; Narayanan et al., 2021,
    section 2.2). What a section works with for a moment is not counted.

    Args:
        load: its `workers` are the copies of the pipeline.
    """
    found = []
    for place, section in enumerate(sections):
        total = section.parameters * FLOAT
        shard = total // load.workers if zero_stage else total
        under_way = min(len(sections) - place, load.micro_batches)
        bucket = total if zero_stage or load.workers > 1 else 0
        averages = load.averaged * total
        weights = total + facts.buffer_bytes + averages + zero_stage * shard
        parts = {
            "parameters": weights,
            "gradients": total,
            "optimizer": facts.optimizer_bytes(shard // FLOAT),
            "activations": section.kept * under_way,
            "communication": bucket,
            "samples": profile.samples * under_way,
        }
        found.append(Footprint(f"pipeline-{len(sections)}", **parts, peak=sum(parts.values())))
    return max(found, key=lambda one: one.peak)


# --- parts ---------------------------------------------------------------------------------


def _weights(facts: NetworkFacts, load: Load) -> int:
    """Parameters and buffers, and a moving average of them where there is one."""
    averages = load.averaged * (facts.trainable_bytes + facts.buffer_bytes)
    return facts.trainable_bytes + facts.frozen_bytes + facts.buffer_bytes + averages


def _samples(profile: StepProfile, load: Load) -> int:
    return profile.samples * load.micro_batches


def _passes(facts: NetworkFacts, profile: StepProfile, load: Load, bucket: int = 0) -> int:
    """The most of working bytes, gradients and a bucket that is made with the first gradient.

    In the first micro-batch gradients come one by one; in later ones all are there, and so are the
    bucket and the answers to the micro-batch before.
    """
    if load.micro_batches > 1:
        return facts.trainable_bytes + bucket + profile.working + profile.answers
    peak, ready, held = profile.forward, 0, 0
    for moment in profile.moments:
        peak = max(peak, held + ready + moment.peak)
        held, ready = bucket, ready + facts.parameters[moment.parameter] * FLOAT
        peak = max(peak, held + ready + moment.live)
    return peak


def _reduced_passes(facts: NetworkFacts, profile: StepProfile, load: Load) -> int:
    """The same where gradients are reduced as the bucket fills, and a rank keeps what it owns."""
    bucket, owned = _bucket(facts), _owned(facts, load.workers)
    earlier = owned + profile.answers if load.micro_batches > 1 else 0
    peak, held, filled, kept = profile.forward, 0, 0, 0
    for moment in profile.moments:
        size = facts.parameters[moment.parameter] * FLOAT
        peak = max(peak, held + kept + moment.peak)
        if filled + size > bucket:  # what is in it is copied to be reduced
            peak = max(peak, held + kept + moment.live + size + filled)
            filled, kept = 0, owned
        held, filled = bucket, filled + size
        peak = max(peak, held + kept + moment.live + size)
    left = profile.moments[-1].live if profile.moments else 0
    return earlier + max(peak, bucket + kept + filled + left, bucket + owned + left)


def _bucket(facts: NetworkFacts) -> int:
    return min(sum(facts.parameters), BUCKET_ELEMENTS) * FLOAT


def _owned(facts: NetworkFacts, workers: int) -> int:
    """Gradients of the parameters that lie, if only in part, in the fullest rank's shards."""
    ranks = [0] * workers
    for group in facts.groups:
        sizes = [facts.parameters[place] for place in group]
        share = -(-sum(sizes) // workers)
        start = 0
        for size in sizes:
            last = min((start + size - 1) // share, workers - 1) if size else start // share
            for rank in range(min(start // share, workers - 1), last + 1):
                ranks[rank] += size
            start += size
    return max(ranks) * FLOAT


def _stepping(facts: NetworkFacts, workers: int) -> int:
    """What the step takes for the largest group's shard, which is updated alone."""
    groups = [sum(facts.parameters[place] for place in group) for group in facts.groups]
    elements = -(-max(groups, default=0) // workers)
    return elements * FLOAT + facts.update_bytes([elements])
