"""`orch data` as a user types it."""

from __future__ import annotations

import json

import pytest

from orchestrator import cli


def orch(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["data", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_get_names_the_folder_and_checks_it(capsys, cache):
    code, out, _ = orch(capsys, "get", "digits", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["train"], found["test"]) == (1438, 359)
    assert found["folder"].startswith(str(cache))
    assert "1,438 training and 359 test" in orch(capsys, "get", "digits")[1]


def test_info_of_a_name_and_of_a_file(capsys, tmp_path):
    code, out, _ = orch(capsys, "info", "digits", "--json")
    assert code == 0
    assert json.loads(out)["sizes"] == {"train": 1222, "val": 144, "select": 72, "test": 359}
    file = tmp_path / "a.yaml"
    file.write_text("name: a\ndata: {source: {type: digits}}\nmodel: {type: resnet18}\n")
    code, out, err = orch(capsys, "info", str(file), "data.split.val=0.2")
    assert code == 0, err
    assert "val 288" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get", "digit"), "did you mean 'digits'"),
        (("get", "image_folder"), "add --root DIR"),
        (("get", "digits", "--root", "/tmp"), "leave --root out"),
        (("get", "fashion_mnist", "--root", "/nowhere"), "/nowhere has neither"),
    ],
)
def test_mistakes_end_with_2_and_the_way_out(capsys, arguments, message):
    code, _, err = orch(capsys, *arguments)
    assert code == 2
    assert message in err


def test_it_is_listed():
    assert "data" in cli.COMMANDS
