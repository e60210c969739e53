"""Sections that say how one optimizer step is applied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Part, part


@part("engine", "plain", build="orchestrator.engine.plain:PlainEngine")
class PlainEngineConfig(Part):
    """PyTorch itself; several workers synchronise gradients as DistributedDataParallel does."""

    type: Literal["plain"] = "plain"


@part("engine", "deepspeed", build="orchestrator.engine.deepspeed:DeepSpeedEngine")
class DeepSpeedEngineConfig(Part):
    """DeepSpeed with ZeRO (Rajbhandari et al., 2020)."""

    type: Literal["deepspeed"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """0 replicates; 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    persist_below: Annotated[int, Field(ge=0)] = 100_000
    """Stage 3 keeps parameters with fewer elements than this whole on every worker."""
