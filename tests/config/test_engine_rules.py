"""What a file may ask of an engine."""

import pytest

from orchestrator.config.load import config_from_mapping
from orchestrator.errors import ConfigError

IMAGES = {
    "name": "x",
    "data": {"source": {"type": "digits"}},
    "model": {"type": "resnet18"},
    "optimizer": {"type": "sgd"},
    "train": {"for": "4 epochs"},
}
PAIRS = IMAGES | {
    "data": {"source": {"type": "csv", "path": "x.csv", "text": "a", "target": "b"}},
    "model": {"type": "transformer"},
    "task": {"type": "sequence_to_sequence"},
    "evaluate": {"monitor": "val/nll", "mode": "min"},
}


def problems(file, *overrides):
    try:
        config_from_mapping(file, overrides)
    except ConfigError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("file", "overrides", "said"),
    [
        (
            IMAGES,
            ["engine={type: pipeline, stages: 3}", "scale.workers=4"],
            "scale.workers: must be a multiple of engine.stages, the workers of one pipeline, but "
            "got workers=4, stages=3; set it to 3",
        ),
        (IMAGES, ["engine={type: pipeline}"], "got workers=1, stages=2; set it to 2"),
        (
            IMAGES,
            ["engine={type: pipeline, zero_stage: 3}", "scale.workers=2"],
            "zero_stage must be 0 or 1 in a pipeline, whose workers keep the gradients and "
            "parameters of their stages whole, got 3; use engine.type: deepspeed",
        ),
        (
            IMAGES,
            ["engine={type: pipeline, cut: [1, 2, 3]}", "scale.workers=2"],
            "cut must have a number for each of the 2 stages, got [1, 2, 3]",
        ),
        (IMAGES, ["engine={type: pipeline, stages: 1}"], "engine.stages: must be at least 2"),
        (
            PAIRS,
            ["engine={type: pipeline}", "scale.workers=2"],
            "task.bleu: asks the model token by token",
        ),
        (
            IMAGES,
            [
                "engine={type: pipeline}",
                "scale.workers=4",
                "train={for: 1 epochs, batch_size: 16, micro_batch: 16}",
            ],
            "got 16 > 8 (batch_size=16, workers=2); take auto or less",
        ),
    ],
)
def test_pipelines_that_can_not_run(file, overrides, said):
    found = problems(file, *overrides)
    assert len(found) == 1, found
    assert said in found[0]


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        (IMAGES, ["engine={type: pipeline, zero_stage: 1}", "scale.workers=2"]),
        (IMAGES, ["engine={type: pipeline, cut: [3, 7]}", "scale.workers=4"]),
        (PAIRS, ["engine={type: pipeline}", "scale.workers=2", "task.bleu=false"]),
        (
            IMAGES,
            [
                "engine={type: pipeline}",
                "scale.workers=2",
                "train={for: 1 epochs, batch_size: 1, micro_batch: 1}",
            ],
        ),
    ],
)
def test_pipelines_that_can(file, overrides):
    assert problems(file, *overrides) == []
