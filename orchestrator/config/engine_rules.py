"""Rules of a file whose model is spread over workers as a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.problems import Finding


def pipeline_rules(config: ExperimentConfig) -> Iterator[Finding]:
    """What a pipeline can't run; a model with too few stages shows when it is built."""
    engine, workers = config.engine, config.scale.workers
    if not isinstance(engine, PipelineEngineConfig):
        return
    if workers % engine.stages:
        nearest = max(round(workers / engine.stages), 1) * engine.stages
        yield Finding(
            ("scale", "workers"),
            "must be a multiple of engine.stages, the workers of one pipeline, but got "
            f"workers={workers}, stages={engine.stages}; set it to {nearest}",
            (("engine", "stages"),),
        )
    if getattr(config.task, "bleu", False):
        yield Finding(
            ("task", "bleu"),
            "asks the model token by token, but a pipeline answers whole batches; set it to "
            "false, or use engine.type: deepspeed",
            (("engine", "type"),),
        )
