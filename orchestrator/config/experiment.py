"""The whole file as one frozen value."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.base import Config, OneOf, Part, Seq
from orchestrator.config.data import DataConfig
from orchestrator.config.engines import PlainEngineConfig
from orchestrator.config.optimizers import AdamW
from orchestrator.config.pipeline import DistillConfig, EnsembleConfig, SweepConfig
from orchestrator.config.schedules import Constant
from orchestrator.config.serving import ServeConfig
from orchestrator.config.training import (
    CheckpointConfig,
    ClassifyTask,
    EvaluateConfig,
    ScaleConfig,
    TrackConfig,
    TrainConfig,
)


class ExperimentConfig(Config):
    """One experiment. Sections that a command does not need may be absent."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """The folder under `runs/`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Initialisation, order and augmentation; never the splits."""
    plugins: Seq[str] = ()
    """Modules that register the user's own parts when imported."""
    data: DataConfig
    model: Annotated[Part, OneOf("model")]
    task: Annotated[Part, OneOf("task")] = ClassifyTask()
    optimizer: Annotated[Part, OneOf("optimizer")] = AdamW()
    schedule: Annotated[Part, OneOf("schedule")] = Constant()
    engine: Annotated[Part, OneOf("engine")] = PlainEngineConfig()
    scale: ScaleConfig = ScaleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()
    sweep: SweepConfig | None = None
    ensemble: EnsembleConfig | None = None
    distill: DistillConfig | None = None
    serve: ServeConfig = ServeConfig()
