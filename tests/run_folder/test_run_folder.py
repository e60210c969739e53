"""Paths of a run folder, what a TARGET means, and what a run ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import RunFolderError
from orchestrator.run_folder.environment import (
    data_changes,
    describe_environment,
    environment_changes,
)
from orchestrator.run_folder.paths import RunPaths, find_runs, resolve_target


@pytest.fixture
def runs(tmp_path):
    """A run, a sweep with two trials, an ensemble and a student, an ensemble made by hand."""
    folder = tmp_path / "runs"
    files = (
        "alone/config.yaml",
        "fmnist/sweep.json",
        "fmnist/trials/000/config.yaml",
        "fmnist/trials/001/model.json",
        "fmnist/ensemble/ensemble.json",
        "fmnist/student/status.json",
        "mine/ensemble.json",
        "notes/todo.txt",
    )
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


def test_paths_are_those_of_the_contract():
    run = RunPaths(Path("runs/fmnist"))
    sweep = {
        "sweep_json": "sweep.json",
        "leaderboard": "leaderboard.json",
        "study": "study.db",
        "trials": "trials",
        "ensemble_json": "ensemble/ensemble.json",
    }
    single = {
        "config": "config.yaml",
        "env": "env.json",
        "status": "status.json",
        "metrics": "metrics.jsonl",
        "events": "events.jsonl",
        "checkpoints": "checkpoints",
        "model": "model.safetensors",
        "model_json": "model.json",
    }
    for name, path in {**sweep, **single}.items():
        assert getattr(run, name) == Path("runs/fmnist") / path
    assert run.trial(3).root == Path("runs/fmnist/trials/003")
    assert run.trial("abc").root == Path("runs/fmnist/trials/abc")
    assert run.student.root == Path("runs/fmnist/student")
    assert run.predictions("val") == Path("runs/fmnist/predictions/val.parquet")
    assert run.rank_log(2) == Path("runs/fmnist/logs/rank-2.log")


@pytest.mark.parametrize(
    ("text", "kind", "where"),
    [
        ("alone", "run", "alone"),
        ("fmnist", "sweep", "fmnist"),
        ("fmnist/trials/001", "run", "fmnist/trials/001"),
        ("fmnist/ensemble", "ensemble", "fmnist/ensemble"),
        ("fmnist/ensemble/ensemble.json", "ensemble", "fmnist/ensemble"),
        ("fmnist/student", "run", "fmnist/student"),
        ("mine", "ensemble", "mine"),
        ("mine/ensemble.json", "ensemble", "mine"),
    ],
)
def test_targets(runs, text, kind, where, monkeypatch, tmp_path):
    by_name = resolve_target(text, runs)
    by_path = resolve_target(runs / text, tmp_path / "elsewhere")
    monkeypatch.chdir(runs.parent)
    relative = resolve_target(f"runs/{text}", Path("runs"))
    for target in (by_name, by_path, relative):
        assert (target.kind, target.path) == (kind, (runs / where).resolve())


def test_an_unknown_target_names_the_nearest(runs):
    with pytest.raises(RunFolderError, match=r"did you mean 'alone'\?"):
        resolve_target("alon", runs)
    with pytest.raises(RunFolderError, match="'fmnist/trials/000'"):
        resolve_target("fmnist/trials/00", runs)
    with pytest.raises(RunFolderError, match="neither a run, a sweep nor an ensemble"):
        resolve_target("notes", runs)
    with pytest.raises(RunFolderError, match="there is no run in"):
        resolve_target("fmnist", runs / "nothing")


def test_find_runs_lists_a_sweeps_parts_behind_it(runs):
    assert [str(paths.root.relative_to(runs)) for paths in find_runs(runs)] == [
        "alone",
        "fmnist",
        "fmnist/trials/000",
        "fmnist/trials/001",
        "fmnist/ensemble",
        "fmnist/student",
        "mine",
    ]


# --- env.json ------------------------------------------------------------------------------


def test_environment_tells_versions_hardware_and_data(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
    env = describe_environment({"seed": 7}, "abc", "def")
    assert env["format"] == 1
    assert env["versions"]["python"] == platform.python_version()
    assert env["versions"]["torch"] == metadata.version("torch")
    assert env["versions"]["ray"] == metadata.version("ray")
    assert env["hardware"]["cores"] == len(os.sched_getaffinity(0))
    total = psutil.virtual_memory().total
    assert env["hardware"]["memory_gib"] == pytest.approx(total / 2**30, abs=0.1)
    assert env["hardware"]["cpu"]
    assert env["data"] == {"digest": "abc", "split_digest": "def"}
    assert env["seeds"] == {"seed": 7}
    assert "hunter2" not in json.dumps(env), "no environment dump"


def test_the_commit_is_the_checkouts():
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        pytest.skip("not a checkout")
    told = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    before = told.stdout.strip()
    assert len(before) == 40
    assert describe_environment({}, "", "")["code"]["commit"] == before


def test_describing_imports_nothing_heavy():
    code = (
        "import sys; from orchestrator.run_folder import environment;"
        "environment.describe_environment({}, '', '');"
        "print({'torch', 'ray', 'deepspeed', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_changes_between_environments():
    one = describe_environment({}, "", "")
    other = json.loads(json.dumps(one))
    assert environment_changes(one, other) == []
    other["versions"]["torch"] = "9.9"
    other["hardware"]["gpus"] = ["H100"]
    assert environment_changes(one, other) == [
        f"versions.torch: {one['versions']['torch']} -> 9.9",
        f"hardware.gpus: {one['hardware']['gpus']} -> ['H100']",
    ]


def test_changes_of_the_data():
    before = describe_environment({}, "a" * 64, "b" * 64)
    assert data_changes(before, "a" * 64, "b" * 64) == []
    assert data_changes(before, "a" * 64, "c" * 64) == [
        "data.split_digest: bbbbbbbbbbbb -> cccccccccccc"
    ]
    assert len(data_changes(before, "d" * 64, "c" * 64)) == 2
    del before["data"]
    assert data_changes(before, "d" * 64, "c" * 64) == [], "nobody knows"
