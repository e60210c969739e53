"""Files become experiments: problems with their places, `extends`, paths, round trips."""

from pathlib import Path

import pytest

from orchestrator.config.base import entries
from orchestrator.config.load import config_from_mapping, derive, dump_yaml, load_config
from orchestrator.config.rules import PER_TOKEN
from orchestrator.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = """\
name: x
data: {source: {type: digits}}
model: {type: resnet18}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="f.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    return write


def problems_of(path, *overrides):
    """(line or override, key, message) of each problem."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    found = caught.value.problems
    return [(p.where.removeprefix(str(path)).lstrip(":"), p.key, p.message) for p in found]


def test_the_smallest_file_has_the_defaults_one_expects(write):
    config = load_config(write(BASE))
    assert config.optimizer.type == "adamw"
    assert str(config.train.duration) == "1 epoch"
    assert config.sweep is None


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_loads_and_survives_a_round_trip(path, write):
    config = load_config(path)
    assert load_config(write(dump_yaml(config))) == config


def test_everything_that_is_wrong_is_said_at_once_in_order(write):
    path = write(
        "name: my run\n"
        "sead: 1\n"
        "data:\n"
        "  source: {type: digit}\n"
        "  augment:\n"
        "  - {type: flip}\n"
        "  - {type: flip, p: 2}\n"
        "model: {type: resnet18, widht: 0.5}\n"
        "optimizer: {type: adamw, lr: '0.1', lambda: 1}\n"
        "train: {for: 3, batch_size: 1_000, micro_batch: atuo}\n"
        "evaluate: {monitor: val/los}\n"
    )
    assert problems_of(path, "schedule.type=cosin") == [
        ("1", "name", "must be at most 100 letters, digits, '.', '_' or '-', the first a letter "
                      "or a digit, got 'my run'"),
        ("2", "sead", "unknown key; did you mean 'seed'?"),
        ("4", "data.source.type", "unknown source 'digit'; did you mean 'digits'?"),
        ("7", "data.augment.1.p", "must be at most 1, got 2"),
        ("8", "model.widht", "unknown key for 'resnet18'; did you mean 'width' or 'weights'?"),
        ("9", "optimizer.lr", "'0.1' is text; write 0.1 without quotes"),
        ("9", "optimizer.lambda", "unknown key for 'adamw'; choose one of: base_batch, betas, "
                                  "decay_norm_and_bias, eps, groups, layer_decay, lr, scale_lr, "
                                  "type, weight_decay"),
        ("10", "train.for", "3 has no unit; write it as '500 steps', '3 epochs' or '5%'"),
        ("10", "train.batch_size", "'1_000' is text; write 1000 instead"),
        ("10", "train.micro_batch", "must be 'auto' or a whole number, got 'atuo'"),
        ("11", "evaluate.monitor", "the task 'classify' reports no 'los'; did you mean 'loss'?"),
        ("override 'schedule.type=cosin'", "schedule.type",
         "unknown schedule 'cosin'; did you mean 'cosine'?"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("lr: 1e-3", "lr", "did you mean 'optimizer.lr'?"),
        ("train:", "train", "is empty; it must be a mapping, so give it or remove the key"),
        ("train: 3", "train", "must be a mapping, got 3"),
        ("train: {clip_norm: no}", "train.clip_norm", "must be a number, got 'no'"),
        ("train: {clip_norm: true}", "train.clip_norm", "must be a number, got true"),
        ("train: {batch_size: 2.5}", "train.batch_size", "must be a whole number, got 2.5"),
        ("train: {duration: 3 epochs}", "train.duration", "unknown key"),
        ("train: {precision: fp8}", "train.precision",
         "must be 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ("scale: {gpus: -1}", "scale.gpus", "must be 'auto' or at least 0, got -1"),
        ("optimizer: {type: sgd, nesterov: 'yes'}", "optimizer.nesterov",
         "must be true or false, got 'yes'"),
        ("optimizer: sgd", "optimizer", "should be a mapping with a `type`"),
        ("optimizer: {lr: 1}", "optimizer.type", "`type` is missing"),
        ("optimizer: {type: [sgd]}", "optimizer.type", "unknown optimizer"),
        ("optimizer: {type: adam, betas: [0.9]}", "optimizer", "betas are two numbers"),
        ("schedule: {type: multistep}", "schedule.milestones", "is missing"),
        ("evaluate: {monitor: accuracy}", "evaluate.monitor", "<split>/<metric>"),
        ("track: {wandb: {tags: x}}", "track.wandb.tags", "must be a list, got 'x'"),
        ("sweep: {trials: 1, space: {}}", "sweep.space", "needs 1 or more items, got 0"),
        ("version: 2", "version", "must be 1, got 2"),
        ("plugins: [3]", "plugins.0", "must be text, got 3"),
    ],
)  # fmt: skip
def test_each_problem_names_the_rule_and_the_value(write, line, key, said):
    found = problems_of(write(BASE + line))
    assert len(found) == 1, found
    assert found[0][:2] == ("4", key)
    assert said in found[0][2]
    assert "Input" not in found[0][2]


def test_a_missing_section_points_at_the_file(write):
    assert problems_of(write("name: x\nmodel: {type: resnet18}")) == [("1", "data", "is missing")]


# --- extends -------------------------------------------------------------------------------


def test_a_file_is_laid_over_the_one_it_extends(write):
    write(BASE + "optimizer: {type: sgd, lr: 0.5, momentum: 0.8}\ntrain: {batch_size: 64}\n"
          "schedule: {type: cosine, final: 0.1}\nsweep: {trials: 1, space: {seed: {type: choice, "
          "values: [1, 2]}}}\n", "base/base.yaml")  # fmt: skip
    child = write(
        "extends: base/base.yaml\nname: y\noptimizer: {type: sgd, lr: 0.25}\n"
        "schedule: {type: exponential}\nsweep: null\n"
    )
    config = load_config(child)
    assert config.name == "y"
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.25, 0.8)
    assert config.schedule.model_dump()["gamma"] == 0.95
    assert config.train.batch_size == 64
    assert config.sweep is None


def test_lists_are_replaced_and_grandparents_count(write):
    write(BASE.replace("digits}", "digits}, augment: [{type: flip}, {type: crop}]"), "a.yaml")
    write("extends: a.yaml\nseed: 3\n", "b.yaml")
    config = load_config(write("extends: b.yaml\ndata: {augment: [{type: crop}]}\n"))
    assert [one.type for one in config.data.augment] == ["crop"]
    assert config.seed == 3


def test_problems_point_into_the_file_they_are_in(write):
    parent = write(BASE + "\noptimizer: {type: sgd,\n  lrr: 1}\n", "base.yaml")
    child = write("extends: base.yaml\nseed: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(child)
    assert {(p.where, p.key) for p in caught.value.problems} == {
        (f"{parent}:6", "optimizer.lrr"),
        (f"{child}:2", "seed"),
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("extends: f.yaml", "extend each other: f.yaml -> f.yaml"),
        ("extends: none.yaml", "there is no file"),
        ("extends: [a.yaml, b.yaml]", "must name one file"),
        ("extends:", "must name one file"),
    ],
)
def test_extends_that_lead_nowhere(write, line, said):
    found = problems_of(write(BASE + line))
    assert found[0][:2] == ("4", "extends")
    assert said in found[0][2]


def test_a_circle_of_files(write):
    write("extends: f.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match=r"f\.yaml -> b\.yaml -> f\.yaml"):
        load_config(write("extends: b.yaml\n"))


# --- paths ---------------------------------------------------------------------------------


def test_paths_are_relative_to_the_file_that_names_them(write, tmp_path, monkeypatch):
    write(
        "name: x\ndata: {source: {type: parquet, path: ../rows}}\n"
        "model: {type: resnet18, weights: w.pth}\n",
        "base/base.yaml",
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config("../f.yaml" if write("extends: base/base.yaml") else "")
    assert config.data.source.path == str(tmp_path / "rows")
    assert config.model.weights == str(tmp_path / "base" / "w.pth")
    config = load_config("../f.yaml", ["data.source.path=here", "model.weights=~/w.pth"])
    assert config.data.source.path == str(tmp_path / "elsewhere" / "here")
    assert config.model.weights == str(Path.home() / "w.pth")


def test_paths_in_searches_and_students_are_absolute_too(write, tmp_path):
    config = load_config(
        write(
            BASE + "sweep: {trials: 2, space: {model.weights: {type: choice, values: [a.pth, "
            "null]}}}\ndistill: {set: {model.weights: s3://bucket/b.pth}}\n"
        )
    )
    assert config.sweep.space["model.weights"].values == (str(tmp_path / "a.pth"), None)
    assert config.distill.set == {"model.weights": "s3://bucket/b.pth"}


# --- dump ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["optimizer", "schedule", "engine", "task"])
def test_every_part_survives_a_round_trip(write, kind):
    needed = {"multistep": {"milestones": ["1 epoch"]}, "distill": {"teacher": "runs/t"}}
    for entry in entries(kind):
        part = {"type": entry.name, **needed.get(entry.name, {})}
        whole = {"name": "x", "data": {"source": {"type": "digits"}}, "model": {"type": "resnet18"}}
        if entry.name == "pipeline":
            whole |= {"scale": {"workers": 2}}
        if entry.name in PER_TOKEN:
            source = {"type": "text_folder", "path": "texts"}
            monitor = {"monitor": "val/nll", "mode": "min"}
            whole |= {"data": {"source": source}, "model": {"type": "gru"}, "evaluate": monitor}
        config = config_from_mapping({**whole, kind: part})
        assert load_config(write(dump_yaml(config))) == config


@pytest.mark.parametrize(
    "text",
    ["1e-3", "010", "0o17", "no", "null", "~", "", ".nan", "a: b", "é\n", "\x00", "1:30", "<<"],
)
def test_text_stays_text_in_a_round_trip(write, text):
    config = load_config(write(BASE), ["track.wandb.project=x"])
    config = derive(config, {"track.wandb.project": text, "distill": {"set": {}}})
    assert load_config(write(dump_yaml(config))).track.wandb.project == text


def test_defaults_are_written_and_none_is_left_out(write):
    text = dump_yaml(load_config(write(BASE)))
    assert "betas: [0.9, 0.999]" in text
    assert "null" not in text
    assert text.index("optimizer:") < text.index("  type: adamw") < text.index("  lr:")


def test_a_searched_type_keeps_only_what_was_given(write):
    text = BASE + (
        "sweep: {trials: 2, space: {optimizer.type: {type: choice, values: [adamw, sgd]}}}\n"
    )
    config = load_config(write(text))
    again = load_config(write(dump_yaml(config)))
    for one in (config, again):
        assert derive(one, {"optimizer.type": "sgd", "sweep": None}).optimizer.lr == 0.1
