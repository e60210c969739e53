"""Rules across sections."""

import pytest

from orchestrator.config.load import config_from_mapping
from orchestrator.config.rules import METRICS
from orchestrator.errors import ConfigError

FILE = {
    "name": "x",
    "data": {"source": {"type": "digits"}},
    "model": {"type": "resnet18"},
    "optimizer": {"type": "sgd"},
    "train": {"for": "4 epochs"},
}


def problems(*overrides):
    try:
        config_from_mapping(FILE, overrides)
    except ConfigError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


def space(text):
    return problems(f"sweep={{trials: 4, space: {{{text}}}}}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluate.monitor=val/acuracy"], "reports no 'acuracy'; did you mean 'accuracy'?"),
        (["evaluate.monitor=test/accuracy"], "write val/accuracy instead of test/accuracy"),
        (["evaluate.monitor=val/loss"], "val/loss is better when lower, so set evaluate.mode: min"),
        (["data.split.val=0"], "must be above 0, since evaluate.monitor is val/accuracy"),
        (["data.split.select=0", "ensemble={}"], "the ensemble is chosen on the select split"),
        (["scale.workers=9", "train.batch_size=8"], "got batch_size=8, workers=9"),
        (
            ["scale.workers=2", "train.batch_size=16", "train.micro_batch=16"],
            "got 16 > 8 (batch_size=16, workers=2); take auto or less",
        ),
        (
            ["scale.workers=2", "train.batch_size=17", "train.micro_batch=10"],
            "got 10 > 9 (batch_size=17, workers=2); take auto or less",
        ),
        (
            ["train.unfreeze=[{at: 0 steps, parameters: [fc]}]"],
            "must be above 0; what learns from the start needs no entry",
        ),
        (
            ["train.unfreeze=[{at: 4 epochs, parameters: [fc]}]"],
            "must be before the end of train.for (4 epochs), got 4 epochs",
        ),
        (
            ["train.unfreeze=[{at: 1 epoch, parameters: [fc]}]", "train.ema={}"],
            "the average would start anew at each point",
        ),
        (
            [
                "engine={type: deepspeed, zero_stage: 3, offload: {parameters: nvme, path: /n}}",
                "train.ema={}",
            ],
            "needs the parameters in memory, but engine.offload.parameters is nvme; use cpu",
        ),
        (["train.precision=fp16", "scale.gpus=0"], "fp16 needs a GPU, but scale.gpus is 0"),
        (["data.loader.type=ray"], "ray streams image_folder and parquet"),
        (["schedule={type: cosine, warmup: 5 epochs}"], "must not be longer than train.for"),
        (
            ["sweep={trials: 1, space: {seed: {type: choice, values: [1]}}, "
             "scheduler: {type: asha, grace: 4 epochs}}"],
            "must be shorter than train.for (4 epochs)",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(overrides, said):
    found = problems(*overrides)
    assert len(found) == 1, found
    assert said in found[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluate={monitor: val/loss, mode: min}"],
        ["scale.workers=2", "train.batch_size=16", "train.micro_batch=8"],
        ["scale.workers=2", "train.batch_size=17", "train.micro_batch=9"],
        ["train.batch_size=3", "scale.workers=3"],
        ["schedule={type: cosine, warmup: 4 epochs}"],
        ["schedule={type: cosine, warmup: 500 steps}"],
        ["data={source: {type: parquet, path: x}, loader: {type: ray}}"],
        ["distill.set={model.type: efficientnet_b0, model.depth: 0.5, optimizer.lr: 1}"],
    ],
)
def test_what_does(overrides):
    assert problems(*overrides) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "optimizer.lrr: {type: uniform, low: 0, high: 1}",
            "unknown key for 'sgd'; did you mean 'lr'?",
        ),
        ("optimizer.lr: {type: uniform, low: -1, high: 1}", "must be above 0, got -1"),
        ("optimizer.momentum: {type: uniform, low: 0.5, high: 1}", "must be below 1, got 1.0"),
        ("model.type: {type: choice, values: [resnet18, resnet19]}", "unknown model 'resnet19'"),
        ("data.split.seed: {type: choice, values: [1, 2]}", "one split"),
        ("name: {type: choice, values: [a, b]}", "names each trial's folder"),
        ("sweep.trials: {type: choice, values: [1, 2]}", "is the search itself"),
        (
            "scale.workers: {type: choice, values: [1, 2]}",
            "can't be searched: it is what every run of the sweep is started with",
        ),
        ("data.augment.0.p: {type: uniform, low: 0, high: 1}", "data.augment has no item 0"),
    ],
)
def test_spaces_that_no_trial_could_use(text, said):
    found = space(text)
    assert len(found) == 1, found
    assert found[0].startswith(f"sweep.space.{text.split(': ')[0]}: ")
    assert said in found[0]


def test_a_searched_key_must_fit_every_searched_type():
    types = "model.type: {type: choice, values: [resnet18, efficientnet_b0]}"
    found = space(types + ", model.depth: {type: uniform, low: 0.5, high: 1}")
    assert found == [
        "sweep.space.model.depth: with model.type=resnet18: unknown key for 'resnet18'; "
        "did you mean 'width'?"
    ]
    assert space(types + ", model.width: {type: uniform, low: 0.5, high: 1}") == []


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("model.widht: 1", "model.widht", "did you mean 'width'"),
        ("model.width: -1", "model.width", "must be above 0, got -1"),
        ("task.loss: 1", "task.loss", "is replaced by distillation"),
        ("data.split.val: 0.2", "data.split.val", "one split"),
        ("scale.cpus: 2", "scale.cpus", "every run of the sweep is started with"),
        ("model: {type: resnet18, x: 1}", "model", "model.x: unknown key"),
    ],
)
def test_students_that_can_not_be(text, key, said):
    found = problems(f"distill={{set: {{{text}}}}}")
    assert len(found) == 1, found
    assert found[0].startswith(f"distill.set.{key}: ")
    assert said in found[0]


def test_rules_do_not_judge_what_is_wrong_already():
    found = problems("train.batch_size=0", "scale.workers=200", "evaluate.monitor=val/x")
    assert [text.split(":")[0] for text in found] == ["evaluate.monitor", "train.batch_size"]


def test_the_metrics_named_here_are_those_that_tasks_compute():
    from orchestrator.config.base import build
    from orchestrator.config.training import ClassifyTask
    from orchestrator.data.types import DataInfo

    names = tuple(map(str, range(10)))
    info = DataInfo((1, 8, 8), names, (0.0,), (1.0,), {"train": 1}, "", "")
    metrics = build("task", ClassifyTask()).metrics(info)
    assert {*metrics.keys(), "loss"} == set(METRICS["classify"])
