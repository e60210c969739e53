"""`model.weights` as the command line meets it: what is said of a file, before and in training."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from orchestrator import cli, models

FILE = """
name: x
data:
  source: {type: synthetic, samples: 32, test_samples: 8, size: 16, channels: 1}
  split: {val: 0.25, select: 0}
model: {type: resnet18, width: 0.0625}
optimizer: {type: sgd, lr: 1e-2}
scale: {cpus: 1, gpus: 0}
train: {for: 1 steps, batch_size: 8, micro_batch: 8, precision: fp32, memory_format: contiguous}
"""


def state(name="resnet18", classes=10, **options):
    given = {"width": 0.0625} | options
    network = models.create(name, num_classes=classes, in_channels=1, image_size=16, **given)
    return network.state_dict()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(FILE)
    return tmp_path


def truncated(path):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Code:
    def __reduce__(self):
        return os.getcwd, ()


WRONG = {
    "of-another-model.safetensors": (
        lambda path: save_file(state("mobilenet_v2", width=0.25), path),
        r"does not fit ResNet:\n  missing from the file: conv1\.weight, .*\n"
        r"  unknown to the model: classifier\.1\.bias, .*\n.*Choose the model, and its options",
    ),
    "wider.safetensors": (
        lambda path: save_file(state(width=0.25), path),
        r"of another shape: conv1\.weight \(16, 1, 3, 3\) in the file, \(\d, 1, 3, 3\) in",
    ),
    "cut.pth": (
        truncated,
        r"can't be read as weights: PytorchStreamReader failed [\w\s:]+\. It is",
    ),
    "code.pth": (
        lambda path: torch.save({"conv1.weight": Code()}, path),
        r"holds more than tensors, so it is refused: it needs posix\.getcwd\. Save its",
    ),
    "none.pth": (lambda path: None, r"there is no weights file .*none\.pth; check the path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_before_anything_is_made(name, place, capsys):
    make, said = WRONG[name]
    make(place / name)
    change = f"model.weights={name}"
    for arguments in (["validate", "--build"], ["train"], ["train", "--dry-run"]):
        assert cli.run([*arguments, "x.yaml", change]) == 2
        shown = capsys.readouterr().err
        assert re.search(rf"model\.weights: .*{re.escape(name)}", shown)
        assert re.search(said, shown)
        assert "weights_only" not in shown  # PyTorch would have the code in the file run
    assert not (place / "runs").exists()


def test_what_a_file_gives_is_said_and_recorded(place, capsys):
    save_file(state(classes=7), place / "seven.safetensors")
    change = "model.weights=seven.safetensors"
    count = len(state()) - 2
    note = f"{count} tensors; the head, of 7 classes in the file, starts fresh"
    assert cli.run(["validate", "--build", "x.yaml", change]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"  model.weights: {note}"
    assert cli.run(["validate", "--build", "--json", "x.yaml", change]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["weights"] == note
    assert cli.run(["train", "--dry-run", "x.yaml", change]) == 0
    assert f"weights {note}" in capsys.readouterr().out.splitlines()
    assert cli.run(["train", "x.yaml", change]) == 0
    lines = map(json.loads, (place / "runs" / "x" / "events.jsonl").read_text().splitlines())
    (event,) = [line for line in lines if line["event"] == "weights"]
    assert event["message"] == f"{place / 'seven.safetensors'}: {note}"
