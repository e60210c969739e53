"""Typed configuration: everything a user may change, without torch or ray."""

# Importing a section registers its parts.
from orchestrator.config import data, model, pipeline, training, zoo
from orchestrator.config.experiment import ExperimentConfig

__all__ = ["ExperimentConfig", "data", "model", "pipeline", "training", "zoo"]
