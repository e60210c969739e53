"""`orch validate`, `orch schema` and `orch list`."""

import json
from pathlib import Path

import jsonschema
import pytest

from orchestrator import cli
from orchestrator.config import base
from orchestrator.config.digest import config_digest
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import dump_yaml, load_config
from orchestrator.config.yaml import parse_yaml

ROOT = Path(__file__).parents[2]
KEYS = ", ".join(sorted(ExperimentConfig.model_fields))
GOOD = ROOT / "sweeps" / "resnet.yaml"


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: x\nmodel: {type: resnet19}\ndata: {source: {type: digits}}\nbogus_key: 1\n"
    )
    return path


def test_a_good_file(capsys):
    assert cli.run(["validate", str(GOOD)]) == 0
    digest = config_digest(load_config(GOOD))
    assert capsys.readouterr().out == f"{GOOD}: ok (name resnet, digest {digest[:12]})\n"


def test_good_and_bad_files(bad, capsys):
    assert cli.run(["validate", str(GOOD), str(bad)]) == 2
    shown = capsys.readouterr()
    assert "ok" in shown.out
    assert shown.err.splitlines() == [
        f"{bad}:2: model.type: unknown model 'resnet19'; did you mean 'resnet9' or 'resnet18' "
        "or 'resnet152'?",
        f"{bad}:4: bogus_key: unknown key; choose one of: {KEYS}",
        f"{bad}: 2 problems",
    ]


def test_overrides_apply_to_every_file(bad, capsys):
    assert cli.run(["validate", "train.for=0 epochs", str(GOOD), str(bad)]) == 2
    assert capsys.readouterr().err.count("must be steps or epochs above 0") == 2


def test_json_is_one_document_for_good_and_bad(bad, capsys):
    assert cli.run(["validate", "--json", str(GOOD), str(bad)]) == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    good, wrong = document["files"]
    assert (good["ok"], good["name"], len(good["digest"])) == (True, "resnet", 64)
    assert wrong["problems"][1] == {
        "where": f"{bad}:4",
        "key": "bogus_key",
        "message": f"unknown key; choose one of: {KEYS}",
    }


# --- schema --------------------------------------------------------------------------------


@pytest.fixture
def schema(capsys):
    assert cli.run(["schema"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_schema_is_valid_and_described(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["name"]["description"] == "The folder under `runs/`."
    assert "extends" in schema["properties"]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_loads_fits_the_schema(schema, path):
    check = jsonschema.Draft202012Validator(schema)
    for text in (path.read_text(), dump_yaml(load_config(path))):
        assert [e.message for e in check.iter_errors(parse_yaml(text, "f").values)] == []


@pytest.mark.parametrize(
    "text",
    [
        "name: x",
        "{name: x, data: {source: {type: digits}}, model: {type: resnet19}}",
        "{name: x, data: {source: {type: digits}}, model: {width: 1}}",
        "{name: x, data: {source: {type: digits}}, model: {type: resnet18}, seeed: 1}",
        "{name: x, data: {source: {type: digits}}, model: {type: resnet18}, optimizer: "
        "{type: adamw, lr: -1}}",
        "{name: x, data: {source: {type: digits}}, model: {type: resnet18}, train: {for: 3}}",
    ],
)
def test_what_is_wrong_does_not_fit_the_schema(schema, text):
    assert not jsonschema.Draft202012Validator(schema).is_valid(parse_yaml(text, "f").values)


def test_a_file_that_extends_another_may_leave_sections_out(schema):
    assert jsonschema.Draft202012Validator(schema).is_valid({"extends": "base.yaml", "seed": 1})


# --- list ----------------------------------------------------------------------------------


def test_every_kind_can_be_listed(capsys):
    from orchestrator.cli.list import KINDS

    assert set(KINDS.values()) == set(base.KINDS)
    for plural, kind in KINDS.items():
        assert cli.run(["list", plural, "--json"]) == 0
        items = json.loads(capsys.readouterr().out)["items"]
        assert [item["name"] for item in items] == base.names(kind)
        assert all(item["summary"] for item in items)


def test_a_list_for_people(capsys):
    assert cli.run(["list", "optimizers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sgd      Stochastic gradient descent with momentum." in lines


def test_plugins_join_lists_and_the_schema(tmp_path):
    import subprocess
    import sys

    for arguments in (["list", "models"], ["schema"]):
        command = [
            sys.executable,
            "-m",
            "orchestrator",
            *arguments,
            "--plugin",
            "example_parts.orch",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT / "tests" / "plugin_example"
        )
        assert done.returncode == 0, done.stderr
        assert "example_mlp" in done.stdout
