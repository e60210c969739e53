"""A small experiment on real data, and the real command line to run it with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import psutil
import pytest

from orchestrator import cli

FILE = """
version: 1
name: lab
data:
  source: {type: digits}
  augment: [{type: crop, padding: 1}]
model: {type: efficientnet_small, width: 0.25, depth: 0.35, dropout: 0.2}
optimizer: {type: adamw, lr: 5e-3}
schedule: {type: one_cycle, warmup: 25%}
scale: {cpus: 1, gpus: 0}
train:
  for: 4 epochs
  batch_size: 64
  precision: fp32
  memory_format: contiguous
  early_stopping: {patience: 50}
  log_every: 5
evaluate: {every: 0.5 epoch}
checkpoint: {every: 0.35 epoch, keep_last: 3}
"""

SWEEP = """
extends: lab.yaml
train: {for: 3 epochs}
evaluate: {every: 1 epoch}
sweep:
  trials: 4
  space: {optimizer.lr: {type: log_uniform, low: 1e-3, high: 1e-2}}
  sampler: {type: random}
ensemble: {size: 3}
distill: {set: {model.width: 0.2}}
"""


class Lab:
    """Runs `orch` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        (folder / "lab.yaml").write_text(FILE)
        (folder / "sweep.yaml").write_text(SWEEP)

    def start(self, *arguments: str, **options) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, *arguments: str, code: int = 0, **options) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, code, out, err)

    def here(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """What `run` does, without waiting for another process to import everything."""
        out, err = StringIO(), StringIO()
        with contextlib.chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            found = cli.run(arguments)
        assert found == code, f"exit code {found}\n{out.getvalue()}\n{err.getvalue()}"
        assert "Traceback" not in err.getvalue()
        return subprocess.CompletedProcess(arguments, found, out.getvalue(), err.getvalue())

    def lines(self, name: str) -> list[dict]:
        path = self.runs / name / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def status(self, name: str) -> dict:
        return json.loads((self.runs / name / "status.json").read_text())

    def kill_at(self, process: subprocess.Popen[str], name: str, step: int, sig=signal.SIGKILL):
        """Sends a signal once a run has logged `step`."""
        wait_for(
            lambda: any(line["step"] >= step for line in self.lines(name)),
            process,
            f"{name} never reached step {step}",
        )
        process.send_signal(sig)


def wait_for(condition, process, why: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            out, err = process.communicate()
            pytest.fail(f"{why}: it ended with {process.returncode}\n{out}\n{err}")
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"{why} in {seconds:.0f} s")
        time.sleep(0.05)


def alive_in_session(leader: int) -> list[str]:
    """Command lines of the processes that a session leader left behind."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            ended = process.info["status"] == psutil.STATUS_ZOMBIE
            if process.pid != leader and os.getsid(process.pid) == leader and not ended:
                found.append(" ".join(process.info["cmdline"] or [])[:200])
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def assert_nothing_left(leader: int, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while left := alive_in_session(leader):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
