"""Dotted changes: on the command line, for trials, for students."""

import pytest

from orchestrator.config.duration import Duration
from orchestrator.config.load import config_from_mapping, derive
from orchestrator.errors import ConfigError

FILE = {
    "name": "x",
    "data": {
        "source": {"type": "digits"},
        "augment": [{"type": "flip"}, {"type": "crop", "padding": 2}],
    },
    "model": {"type": "efficientnet_b0", "depth": 0.5, "width": 0.5},
    "sweep": {"trials": 2, "space": {"optimizer.lr": {"type": "uniform", "low": 0.1, "high": 1}}},
}


def load(*overrides):
    return config_from_mapping(FILE, overrides)


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return [str(problem) for problem in caught.value.problems]


def test_values_are_yaml():
    config = load(
        "optimizer.lr=3e-4", "train.for=7 steps", "name=no", "data.augment=[{type: flip, p: 0.1}]"
    )
    assert config.optimizer.lr == 3e-4
    assert config.train.duration == Duration(7, "steps")
    assert config.name == "no"
    assert [one.model_dump() for one in config.data.augment] == [{"type": "flip", "p": 0.1}]


def test_sections_that_the_file_leaves_out_start_from_their_default():
    config = load(
        "task.loss.label_smoothing=0.1", "optimizer.betas.0=0.8", "track.wandb.mode=offline"
    )
    assert config.task.loss.model_dump() == {"type": "cross_entropy", "label_smoothing": 0.1}
    assert config.optimizer.betas == (0.8, 0.999)
    assert config.track.wandb.mode == "offline"


def test_items_of_lists_and_keys_with_dots():
    config = load("data.augment.1.padding=3", "sweep.space.optimizer.lr.low=0.5")
    assert config.data.augment[1].padding == 3
    assert config.sweep.space["optimizer.lr"].low == 0.5
    config = load("distill.set.model.width=0.25", "sweep.space.seed={type: choice, values: [1]}")
    assert config.distill.set == {"model.width": 0.25}
    assert set(config.sweep.space) == {"optimizer.lr", "seed"}


def test_a_section_is_removed_with_null():
    assert load("sweep=null").sweep is None
    assert load("sweep=").sweep is None


def test_another_type_drops_what_it_does_not_know_and_keeps_the_rest():
    config = load("model.type=resnet18")
    assert config.model.type == "resnet18"
    assert config.model.width == 0.5


@pytest.mark.parametrize(
    "overrides",
    [("model.type=resnet18", "model.depth=2"), ("model.depth=2", "model.type=resnet18")],
)
def test_another_type_does_not_hide_a_wrong_override(overrides):
    assert problems(*overrides) == [
        "override 'model.depth=2': model.depth: unknown key for 'resnet18'; did you mean 'width'?"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr", "write it as key=value"),
        ("=1", "write it as key=value"),
        ("a..b=1", "write it as key=value"),
        ("optimizer.lr=x", "optimizer.lr: must be a number, got 'x'"),
        ("optimizer.lr='3'", "optimizer.lr: '3' is text; write 3 without quotes"),
        ("optimizer.lr=.nan", "finite"),
        ("optimizer.l=3", "optimizer.l: unknown key for 'adamw'; did you mean 'lr'?"),
        ("optimzer.lr=3", "optimzer: unknown key; did you mean 'optimizer'?"),
        ("data.augment.7.p=1", "data.augment has no item 7; the last is data.augment.1"),
        ("data.augment.x=1", "data.augment is a list; write data.augment.0 for its first item"),
        ("data.augment.-1.p=1", "data.augment is a list"),
        ("name.x=1", "name is 'x', which has no keys of its own"),
        ("model.freeze=[", "the text ends before its value is complete"),
        ("seed=*a", "alias"),
        ("seed=!!int 3", "tags"),
    ],
)
def test_a_wrong_override_is_quoted(override, said):
    found = problems(override)
    assert len(found) == 1
    assert found[0].startswith(f"override {override!r}: ")
    assert said in found[0]


def test_every_wrong_override_is_said():
    assert len(problems("a", "seed=-1", "model.x=1")) == 3


# --- derive --------------------------------------------------------------------------------


def test_a_trial_is_validated_anew():
    config = load()
    trial = derive(config, {"optimizer.lr": 0.5, "name": "x-1", "sweep": None})
    assert (trial.optimizer.lr, trial.name, trial.sweep) == (0.5, "x-1", None)
    assert config.optimizer.lr == 1e-3
    with pytest.raises(ConfigError, match=r"optimizer\.lr: must be above 0, got -1"):
        derive(config, {"optimizer.lr": -1})
    with pytest.raises(ConfigError, match=r"optimizer\.lrr: unknown key for 'adamw'"):
        derive(config, {"optimizer.lrr": 1})
    with pytest.raises(ConfigError, match=r"batch_size >= scale\.workers"):
        derive(config, {"train.batch_size": 2, "scale.workers": 4})


def test_another_type_has_its_own_defaults():
    config = load("optimizer.eps=1e-6")
    assert derive(config, {"optimizer.type": "sgd"}).optimizer.lr == 0.1
    assert derive(load("optimizer.lr=0.3"), {"optimizer.type": "sgd"}).optimizer.lr == 0.3


def test_values_from_python_are_taken():
    trial = derive(
        load(),
        {
            "train.for": Duration(2, "epochs"),
            "optimizer": load("optimizer.type=sgd").optimizer,
            "optimizer.momentum": 0.5,
            "data.augment": (),
        },
    )
    assert str(trial.train.duration) == "2 epochs"
    assert (trial.optimizer.type, trial.optimizer.momentum) == ("sgd", 0.5)
    assert trial.data.augment == ()


def test_what_python_can_say_but_a_file_cannot():
    loop = {}
    loop["x"] = loop
    for value in (loop, {1: 2}):
        with pytest.raises(ConfigError, match=r"deep|keys are text"):
            config_from_mapping({**FILE, "model": value})
        with pytest.raises(ConfigError, match=r"model: (nested|keys are text)"):
            derive(load(), {"model": value})
    with pytest.raises(ConfigError, match="finite"):
        derive(load(), {"optimizer.lr": float("nan")})
