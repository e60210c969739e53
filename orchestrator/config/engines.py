"""Sections that say how one optimizer step is applied."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Config, Part, Seq, part
from orchestrator.config.deepspeed_keys import problems_of
from orchestrator.config.numbers import Positive


@part("engine", "plain", build="orchestrator.engine.plain:PlainEngine")
class PlainEngineConfig(Part):
    """PyTorch itself; several workers synchronise gradients as DistributedDataParallel does."""

    type: Literal["plain"] = "plain"


@part("engine", "auto", build="orchestrator.plan.engine:unresolved")
class AutoEngineConfig(Part):
    """Chosen before the first step by the memory plan: plain while it fits, then ZeRO 1, 2, 3.

    Where none of them fits, the micro-batch is halved; the effective batch stays. What was chosen
    is written into the run's own file.
    """

    type: Literal["auto"] = "auto"


class OffloadConfig(Config):
    """Where ZeRO keeps what a GPU lacks room for (Ren et al., 2021; Rajbhandari et al., 2021)."""

    optimizer: Literal["none", "cpu", "nvme"] = "cpu"
    """Optimizer state and update; adam and adamw then run as DeepSpeed's CPU-Adam."""
    parameters: Literal["none", "cpu", "nvme"] = "none"
    """Parameters between their uses; needs zero_stage 3."""
    path: str | None = None
    """A folder on an NVMe drive, where something is kept there."""

    @model_validator(mode="after")
    def _path_for_nvme(self) -> OffloadConfig:
        if "nvme" in (self.optimizer, self.parameters) and not self.path:
            raise ValueError("nvme needs `path`, a folder on the drive, such as /mnt/nvme")
        return self


@part("engine", "deepspeed", build="orchestrator.engine.deepspeed:DeepSpeedEngine")
class DeepSpeedEngineConfig(Part):
    """DeepSpeed with ZeRO (Rajbhandari et al., 2020)."""

    type: Literal["deepspeed"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """0 replicates; 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    persist_below: Annotated[int, Field(ge=0)] = 100_000
    """Stage 3 keeps parameters with fewer elements than this whole on every worker."""
    offload: OffloadConfig | None = None
    compression: Literal["none", "bf16", "fp16"] = "none"
    """Send gradients between workers in this precision, at half the bytes."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed's own configuration, for what has no key here; merged last."""

    @model_validator(mode="after")
    def _fits(self) -> DeepSpeedEngineConfig:
        if problems := list(problems_of(self.deepspeed)):
            raise ValueError(f"deepspeed: {'; '.join(problems)}")
        if self.offload is None:
            return self
        needed = 1
        if self.offload.parameters != "none" or "nvme" in self.offload.optimizer:
            needed = 3
        if self.zero_stage < needed:
            what = "parameters or to nvme" if needed == 3 else "the optimizer"
            raise ValueError(
                f"offload of {what} needs zero_stage >= {needed}, but got {self.zero_stage}; "
                "raise it, or remove `offload`"
            )
        return self


@part("engine", "pipeline", build="orchestrator.engine.pipeline:PipelineEngine")
class PipelineEngineConfig(Part):
    """DeepSpeed's pipeline: each worker holds some stages (1F1B; Narayanan et al., 2021).

    `scale.workers` is `stages` times the number of copies of the model that learn side by side.
    """

    type: Literal["pipeline"] = "pipeline"
    stages: Annotated[int, Field(ge=2)] = 2
    """Workers that one copy of the model is spread over."""
    zero_stage: int = 0
    """0, or 1 to shard the optimizer's state over the copies."""
    balance: Literal["time", "parameters"] = "time"
    """What the workers' shares of the model are equal in: measured time, or parameters."""
    cut: Seq[Positive] | None = None
    """How many of the model's own stages each worker holds, in order; left out, `balance` says."""

    @model_validator(mode="after")
    def _fits(self) -> PipelineEngineConfig:
        if self.zero_stage not in (0, 1):
            raise ValueError(
                "zero_stage must be 0 or 1 in a pipeline, whose workers keep the gradients and "
                f"parameters of their stages whole, got {self.zero_stage}; use engine.type: "
                "deepspeed for 2 and 3"
            )
        if self.cut is not None and len(self.cut) != self.stages:
            raise ValueError(
                f"cut must have a number for each of the {self.stages} stages, got "
                f"{list(self.cut)}; leave it out to have it chosen"
            )
        return self


def copies(engine: Part, workers: int) -> int:
    """How many whole copies of the model so many workers hold: all of them, but in a pipeline."""
    return max(workers // getattr(engine, "stages", 1), 1)
