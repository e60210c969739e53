"""docs/trained.md and the heads of the sweep files: every command in them is a valid one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import load_config
from orchestrator.config.rules import PER_TOKEN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trained.md").read_text()
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
KINDS = {"CNN", "light", "transformer", "sequence"}
DATA = {"fashion_mnist": "Fashion-MNIST", "csv": "docstrings", "text_folder": "help pages"}
FULL_TRAIN = re.compile(r"^orch train .*$", re.MULTILINE)
SCRIPT = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def loaded(command: str) -> ExperimentConfig:
    """The file of an `orch train` or `orch sweep` command with its overrides, checked."""
    _, verb, path, *overrides = (word for word in shlex.split(command) if word[0] != "-")
    return load_config(ROOT / path, overrides, single_run=verb == "train")


def rows() -> dict[str, list[str]]:
    """The cells of the table's lines, by the run's name, which is the first."""
    found = (re.split(r" *\| *", line.strip("| ")) for line in PAGE.splitlines() if "| `" in line)
    return {cells[0].strip("`"): cells[1:] for cells in found}


def test_each_line_of_the_table_has_a_command_that_says_the_same():
    commands = {(config := loaded(text)).name: config for text in FULL_TRAIN.findall(PAGE)}
    assert commands.keys() == rows().keys()
    for name, (model, _, data, _, epochs, _, score) in rows().items():
        config = commands[name]
        assert model == f"`{config.model.type}`"
        assert data == DATA[config.data.source.type]
        assert f"{epochs} epochs" == str(config.train.duration)
        assert score.startswith("perplexity") == (config.task.type in PER_TOKEN)


def test_the_table_has_each_kind_and_six_families():
    kinds = [cells[1] for cells in rows().values()]
    assert set(kinds) == KINDS
    models = {cells[0].strip("`") for cells in rows().values()}
    assert len({re.match(r"[a-z]+", model)[0] for model in models}) >= 6  # type: ignore[index]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_commands_in_the_heads_of_sweep_files_are_valid(path):
    head = path.read_text().split("\nversion:")[0]
    text = re.sub(r" \\\n# *", " ", head)
    commands = re.findall(r"orch (?:train|sweep) sweeps/[^#(\n]*", text)
    assert commands
    for command in commands:
        assert loaded(command.split("   ")[0]).version == 1


def test_the_page_writes_the_texts_that_it_trains_on(tmp_path):
    code = SCRIPT[1].replace("/tmp/docstrings", str(tmp_path))  # type: ignore[index]
    exec(re.sub(r"LIBRARIES = \(.*\)", 'LIBRARIES = ("sqlalchemy",)', code), {})
    for split, least in (("train", 1000), ("test", 100)):
        lines = (tmp_path / f"{split}.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == "text,label"
        assert len(lines) > least
