"""`orch runs`, on folders that the writers themselves made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from orchestrator.cli.runs import runs_command
from orchestrator.errors import RunFolderError
from orchestrator.files import write_json
from orchestrator.run_folder.checkpoint import Checkpoints, CheckpointStore
from orchestrator.run_folder.lease import Lease
from orchestrator.run_folder.opening import open_run
from orchestrator.run_folder.paths import RunPaths


def make(root, state, lr=0.1, best=2, kind="run"):
    """A run of four checkpoints."""
    paths = RunPaths(root)
    yaml = f"name: {paths.name}\noptimizer: {{type: sgd, lr: {lr}}}\nseed: 0\n"
    with open_run(paths, digest="d", config_yaml=yaml, resume=False, kind=kind) as run:
        store = CheckpointStore(paths.checkpoints, keep_last=4)
        for step in (1, 2, 3, 4):
            with store.save(step, metric=0.9 if step == best else 0.1) as folder:
                (folder / "model.pt").write_bytes(bytes(1000))
        run.status.progress(4, 2.0, {"val/accuracy": 0.1})
        run.status.best(best, 0.9, {"val/accuracy": 0.9})
        run.status.timing("train", 12.5)
        if state != "stopped":
            run.status.finish(state, "the end")
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "runs"
    make(folder / "done", "done")
    make(folder / "failed", "failed", lr=0.3)
    make(folder / "halted", "interrupted")
    make(folder / "killed", "stopped")
    sweep = RunPaths(folder / "search")
    make(sweep.root, "done", kind="sweep")
    make(sweep.trial(0).root, "done")
    make(sweep.trial(1).root, "pruned", best=4)
    write_json(sweep.leaderboard, {"format": 1, "trials": [{"id": "000", "value": 0.95}]})
    sweep.ensemble.mkdir()
    write_json(sweep.ensemble_json, {"format": 1, "members": [], "select": {"accuracy": 0.97}})
    return folder


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def orch(runs, *arguments, **options):
    command = [*arguments, "--runs-dir", str(runs)]
    return CliRunner().invoke(runs_command, command, catch_exceptions=False, **options)


def document(runs, *arguments):
    result = orch(runs, *arguments, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def steps(paths):
    return [one.step for one in Checkpoints(paths.checkpoints).valid()]


def test_list(runs):
    found = {one["name"]: one for one in document(runs, "list")["runs"]}
    assert {name: one["state"] for name, one in found.items()} == {
        "done": "done",
        "failed": "failed",
        "halted": "interrupted",
        "killed": "stopped",
        "search": "done",
    }
    assert (found["done"]["kind"], found["done"]["best"], found["done"]["epoch"]) == ("run", 0.9, 2)
    assert (found["search"]["kind"], found["search"]["best"]) == ("sweep", 0.95)
    assert found["search"]["trials"] == 2
    text = orch(runs, "list").stdout.splitlines()
    assert text[0].split() == ["name", "kind", "state", "best", "epochs", "trials", "age"]
    assert len(text) == 6


def test_list_all_has_the_parts_of_a_sweep(runs):
    found = {one["name"]: one for one in document(runs, "list", "--all")["runs"]}
    assert found["search/trials/001"]["state"] == "pruned"
    assert found["search/ensemble"]["best"] == 0.97
    assert found["search/ensemble"]["state"] == "done"


def test_a_running_run_is_told_from_a_killed_one(runs):
    with Lease(RunPaths(runs / "killed").lease):
        found = {one["name"]: one["state"] for one in document(runs, "list")["runs"]}
        assert found["killed"] == "running"


def test_list_of_nothing(tmp_path):
    assert document(tmp_path / "none", "list") == {"runs": []}
    result = orch(tmp_path / "none", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "there is no run" in result.stderr


def test_a_broken_run_does_not_hide_the_others(runs):
    RunPaths(runs / "done").status.write_text("{")
    found = {one["name"]: one["state"] for one in document(runs, "list")["runs"]}
    assert found["done"] == "unreadable"
    assert len(found) == 5


def test_show(runs):
    found = document(runs, "show", "done")
    assert (found["digest"], found["state"], found["why"]) == ("d", "done", "the end")
    assert found["best"] == {"step": 2, "value": 0.9, "metrics": {"val/accuracy": 0.9}}
    assert found["timings"] == {"train": 12.5}
    assert found["checkpoints"][1] == {"step": 2, "metric": 0.9, "bytes": 1000}
    text = orch(runs, "show", "done").stdout
    assert "state: done" in text
    assert "step 2, metric 0.9, bytes 1000" in text
    assert document(runs, "show", "search")["trials"] == ["000", "001"]
    assert document(runs, "show", "search/ensemble")["select"] == {"accuracy": 0.97}


def test_show_of_an_unknown_name(runs):
    with pytest.raises(RunFolderError, match="did you mean 'done'"):
        orch(runs, "show", "dane")


def test_compare(runs):
    found = document(runs, "compare", "done", "failed", "halted")
    assert found["config"] == {"optimizer.lr": [0.1, 0.3, 0.1]}
    assert found["metrics"]["state"] == ["done", "failed", "interrupted"]
    assert found["metrics"]["val/accuracy"] == [0.9, 0.9, 0.9]
    assert "(the same)" in orch(runs, "compare", "done", "halted").stdout
    result = orch(runs, "compare", "done")
    assert result.exit_code == 2
    with pytest.raises(RunFolderError, match="is an ensemble"):
        orch(runs, "compare", "done", "search/ensemble")


def test_prune_keeps_the_best_and_what_may_go_on(runs):
    answer = document(runs, "prune", "--yes")
    assert answer["removed"] == {
        "done": [1, 3, 4],
        "search": [1, 3, 4],
        "search/trials/000": [1, 3, 4],
        "search/trials/001": [1, 2, 3],
    }
    assert answer["bytes"] == 12_000
    assert steps(RunPaths(runs / "done")) == [2]
    assert steps(RunPaths(runs / "search").trial(1)) == [4]
    for name in ("failed", "halted", "killed"):
        assert steps(RunPaths(runs / name)) == [1, 2, 3, 4]
    assert "nothing to remove" in orch(runs, "prune", "--yes").stdout


def test_prune_of_names_and_of_failed_runs(runs):
    assert set(document(runs, "prune", "search/trials/000", "--yes")["removed"]) == {
        "search/trials/000"
    }
    assert document(runs, "prune", "failed", "--failed", "--yes")["removed"] == {
        "failed": [1, 2, 3, 4]
    }
    assert steps(RunPaths(runs / "failed")) == []
    assert set(document(runs, "prune", "search", "--yes")["removed"]) == {
        "search",
        "search/trials/001",
    }
    assert steps(RunPaths(runs / "done")) == [1, 2, 3, 4]


def test_a_dry_run_and_a_no_remove_nothing(runs):
    answer = document(runs, "prune", "--dry-run")
    assert answer["removed"]["done"] == [1, 3, 4]
    result = orch(runs, "prune", input="n\n")
    assert result.exit_code == 1
    assert steps(RunPaths(runs / "done")) == [1, 2, 3, 4]
    assert orch(runs, "prune", input="y\n").exit_code == 0
    assert steps(RunPaths(runs / "done")) == [2]


def test_a_run_that_is_written_now_is_refused(runs):
    with Lease(RunPaths(runs / "done").lease), pytest.raises(RunFolderError, match="being written"):
        orch(runs, "prune", "done", "--yes")


def test_it_needs_neither_torch_nor_ray(runs):
    code = (
        "import sys; from click.testing import CliRunner;"
        "from orchestrator.cli.runs import runs_command as r;"
        f"CliRunner().invoke(r, ['list', '--runs-dir', {str(runs)!r}], catch_exceptions=False);"
        "print({'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
