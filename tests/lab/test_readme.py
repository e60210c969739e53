"""Everything in the README is run as it stands there, on data and lengths that take seconds."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from orchestrator.config.load import load_config
from orchestrator.networks import build_network

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
TOUR = next(text for _, text in BLOCKS if "orch train FILE --dry-run" in text)
LINES = [line.split(" #")[0].strip() for line in TOUR.splitlines()]

DATA = ["data.source={type: digits}", "data.augment=[{type: crop, padding: 1}]"]
RUN = [*DATA, "model.width=0.25", "train.precision=fp32", "train.memory_format=contiguous"]
SWEEP = [
    *RUN,
    "sweep.trials=3",
    "train.for=2 epochs",
    "evaluate.every=1 epochs",
    "checkpoint.every=1 epochs",
    "sweep.scheduler.grace=1 epochs",
]
SERVED = "orch serve runs/efficientnet"
"""Stays in the foreground; tests/serve starts the same server and asks it."""


def block(language: str, opening: str) -> str:
    return next(text for name, text in BLOCKS if name == language and text.startswith(opening))


@pytest.fixture
def readers_folder(lab, monkeypatch):
    """What a reader has: the checkout's sweeps, the file of the README, a picture."""
    (lab.folder / "sweeps").symlink_to(ROOT / "sweeps")
    (lab.folder / "FILE").write_text(block("yaml", "version: 1"))
    Image.new("L", (28, 28), 90).save(lab.folder / "shoe.png")
    monkeypatch.chdir(lab.folder)
    return lab


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_every_command_of_the_tour(readers_folder):
    lab = readers_folder
    assert SERVED in LINES
    assert all(line.startswith("orch ") for line in LINES)
    # The pipeline first: what follows it on the page, and the teacher, need its folder.
    pipeline = next(line for line in LINES if line.startswith("orch sweep"))
    lab.run(*shlex.split(pipeline)[1:], *SWEEP)
    again = lab.run(*shlex.split(pipeline)[1:], *SWEEP, code=2)
    assert "name=" in again.stderr
    assert {"ensemble", "student", "baseline"} <= {
        p.name for p in (lab.runs / "efficientnet").iterdir()
    }
    for number, line in enumerate(LINES):
        words = shlex.split(line)[1:]
        if line in (pipeline, SERVED):
            continue
        if words[0] == "train":
            load_config(words[1], [w for w in words[2:] if "=" in w], single_run=True)
            words += [*RUN, f"name=tour-{number}"]
        if "--resume" in words:
            process = lab.start(*(word for word in words if word != "--resume"))
            lab.kill_at(process, f"tour-{number}", 1, signal.SIGINT)
            assert process.wait(600) == 130
        if words[0] == "distill":
            words += RUN
        if words[0] == "doctor":
            words += ["--no-parity"]  # tests/lab/test_doctor.py trains
        if words[0] == "ensemble":
            words += ["--name", "another"]
        starts_ray = words[0] in ("sweep", "doctor") or "scale.workers=2" in words
        out = (lab.run if starts_ray else lab.here)(*words).stdout
        assert out.strip(), f"{line} says nothing"


def test_the_file_and_its_parts(readers_folder, monkeypatch):
    folder = readers_folder.folder
    package = folder / "my_package"
    package.mkdir()
    for language, text in BLOCKS:
        if language == "python" and text.startswith("# my_package/"):
            name = text.split(":")[0].split("\n")[0].split("/")[1].strip()
            (package / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    (folder / "mine.yaml").write_text(
        "name: mine\ndata: {source: {type: digits}}\n" + block("yaml", "plugins:")
    )
    config = load_config("mine.yaml")
    network = build_network(config.model, outputs=10, shape=(1, 8, 8))
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for kind in ("import", "resnet50"):
        text = block("yaml", f"model: {{type: {kind}")
        (folder / "other.yaml").write_text(
            f"name: mine\ndata: {{source: {{type: digits}}}}\n{text}"
        )
        assert load_config("other.yaml").model.type == kind
    (folder / "text.yaml").write_text("name: mine\n" + block("yaml", "data: {source: {type: text"))
    assert load_config("text.yaml").task.type == "language_model"
    track = re.search(r"`(track: .*?)`", README)[1]
    load_config("FILE", [f"track={yaml.safe_dump(yaml.safe_load(track)['track'])}"])


def test_the_python_lines(readers_folder):
    code = block("python", "import orchestrator").replace(
        "sweeps/resnet.yaml", str(readers_folder.folder / "lab.yaml")
    )
    found: dict = {}
    exec(code, found)
    assert found["result"].state == "done"
    assert not found["model"].training
    assert found["spec"].shape == (1, 8, 8)
