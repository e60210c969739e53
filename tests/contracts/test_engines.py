"""Every engine, in one process and in two, against the plain engine in one."""

from __future__ import annotations

from orchestrator.config.engines import (
    DeepSpeedEngineConfig,
    OffloadConfig,
    PipelineEngineConfig,
    PlainEngineConfig,
)
from tests.contracts.engine_contract import EngineContract, Subject, pytest_parameters

pytest_generate_tests = pytest_parameters


def deepspeed(stage: int, workers: int) -> Subject:
    # Parameters this small would all persist, and stage 3 would shard nothing.
    config = DeepSpeedEngineConfig(zero_stage=stage, persist_below=10)
    return Subject(f"deepspeed-{stage}-of-{workers}", config, workers)


def offloaded(stage: int, offload: OffloadConfig) -> Subject:
    config = DeepSpeedEngineConfig(zero_stage=stage, persist_below=10, offload=offload)
    return Subject(f"deepspeed-{stage}-offload-of-2", config, 2)


def pipeline(stage: int, workers: int) -> Subject:
    config = PipelineEngineConfig(balance="parameters", zero_stage=stage)
    return Subject(f"pipeline-{stage}-of-{workers}", config, workers)


class TestEngines(EngineContract):
    subjects = (
        Subject("plain-of-1", PlainEngineConfig()),
        Subject("plain-of-2", PlainEngineConfig(), workers=2),
        *(deepspeed(stage, 1) for stage in (0, 3)),
        *(deepspeed(stage, 2) for stage in range(4)),
        offloaded(3, OffloadConfig(parameters="cpu")),
    )


class TestPipelines(EngineContract):
    """Two stages in two processes, and two such pipelines side by side in four."""

    subjects = (pipeline(0, workers=2), pipeline(1, workers=4))
