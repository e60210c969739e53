"""The lines that `orch train` prints where no terminal is."""

from types import SimpleNamespace

import torch

from orchestrator.cli.progress import TrainProgress
from orchestrator.config.load import config_from_mapping
from orchestrator.loop import Evaluation, StepInfo

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
