"""The lines that `orch train` prints where no terminal is."""

import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from orchestrator import api
from orchestrator.cli.progress import TrainProgress
from orchestrator.config.load import config_from_mapping
from orchestrator.host import SingleWorker
from orchestrator.loop import Evaluation, StepInfo
from orchestrator.recipe import run
from orchestrator.run_folder.paths import RunPaths

FILE = {"name": "x", "data": {"source": {"type": "digits"}}, "model": {"type": "resnet18"}}


def test_the_rate_counts_steps_alone(monkeypatch, capsys):
    """Step 1 ends 100 s after the start, because data were read; then 128 samples take 2 s each."""
    clock = iter([0.0, 100.0, *(100.0 + 2 * n for n in range(1, 8))])
    monkeypatch.setattr(
        "orchestrator.cli.progress.time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    progress = TrainProgress(config_from_mapping(FILE))
    for step in range(1, 9):
        done = Evaluation("val", {"val/accuracy": 0.5}) if step == 4 else None
        progress.step(StepInfo(step, 8, step / 4, torch.tensor(2.0), 0.1, 128, evaluation=done))
    assert capsys.readouterr().err.splitlines() == [
        "step 1/8  epoch 0.25  loss 2.0000",
        "step 4/8  epoch 1.00  loss 2.0000  64 samples/s  val/accuracy 0.5000",
        "step 8/8  epoch 2.00  loss 2.0000  64 samples/s  val/accuracy 0.5000",
    ]


def test_a_run_in_other_processes_is_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "FOLLOW_S", 0.01)
    file = FILE | {
        "model": {"type": "mlp", "hidden": [8]},
        "train": {"for": "4 epochs", "precision": "fp32", "memory_format": "contiguous"},
    }
    config = config_from_mapping(file)
    progress = TrainProgress(config)
    progress.interrupted()  # before it has begun there is nothing to go on with
    with ThreadPoolExecutor(1) as others:
        training = others.submit(list, run(config, worker=SingleWorker(), root=tmp_path / "x"))
        api._follow(training, RunPaths(tmp_path / "x"), progress.status)
        assert training.done()
    progress.interrupted()
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"step \d+  epoch .*  val/accuracy 0\.\d{4}", line) for line in lines)
    assert lines[-1] == "go on with the same command and --resume"
    assert lines.count(lines[-1]) == 1
