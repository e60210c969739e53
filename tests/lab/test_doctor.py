"""`orch doctor` as a user runs it: healthy where all is well, and not where ranks differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]
ORCH = Path(sys.executable).parent / "orch"

NETWORK = '''
"""A network whose answer depends on which rank computes it, from the third step on."""

import torch
import torch.distributed as dist
from torch import nn


class Torn(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.head = nn.Linear(64, outputs)
        self.calls = 0

    def forward(self, image):
        self.calls += self.training
        torn = dist.is_initialized() and dist.get_rank() == 1 and self.calls > 2
        return self.head(image.flatten(1)) * (9.0 if torn else 1.0)
'''
CONFIG = """
name: torn
data: {source: {type: digits}}
model: {type: import, target: 'torn:Torn', args: {outputs: $outputs}}
optimizer: {type: sgd, lr: 0.05}
"""


def doctor(folder, *arguments):
    return subprocess.run(
        [ORCH, "doctor", *arguments, "--runs-dir", folder / "runs"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1500,
    )


def test_ranks_that_differ_are_found_and_the_step_is_named(tmp_path):
    (tmp_path / "torn.py").write_text(NETWORK)
    (tmp_path / "torn.yaml").write_text(CONFIG)
    done = doctor(tmp_path, "torn.yaml", "--steps", "4", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["healthy"]
    assert {check["state"] for check in found["checks"]} == {"ok"}
    by_state = {}
    for one in found["parity"]:
        by_state.setdefault(one["state"], []).append(one)
    assert {(one["workers"], one["differs_at"]) for one in by_state["failed"]} == {(2, 3)}
    assert {one["workers"] for one in by_state["ok"]} == {1}
    # The network has no stages, so there is nothing for a pipeline to cut.
    assert {one["variant"] for one in by_state["skipped"]} == {"pipeline of 2"}
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_nodes_alone_are_quick_and_readable(tmp_path):
    done = doctor(tmp_path, "--no-parity")
    assert done.returncode == 0, done.stderr
    assert "healthy" in done.stdout
    for name in ("versions", "storage", "clocks", "disk", "devices"):
        assert any(line.startswith(name) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_more_workers_than_the_machine_has_are_refused(tmp_path):
    done = doctor(tmp_path, "--workers", "4096", "--steps", "1")
    assert done.returncode == 2
    assert "scale asks for 4096 workers" in done.stderr
    assert "Traceback" not in done.stderr
