"""Whose folder it is: fresh, resumed, or refused with the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.config.digest import config_digest, digest_difference
from orchestrator.config.load import config_from_mapping, dump_yaml, load_config
from orchestrator.data import memory
from orchestrator.errors import RunFolderError
from orchestrator.files import read_json
from orchestrator.host import SingleWorker
from orchestrator.recipe import check_folder, run
from orchestrator.run_folder import lease
from orchestrator.run_folder.lease import Holder
from orchestrator.run_folder.opening import next_name, open_run, place_run, run_state
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import read_lines
from orchestrator.run_folder.status import Best, Status
from tests.groups import in_group
from tests.images import draw


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path / "runs" / "fmnist")


def experiment(**optimizer):
    return config_from_mapping(
        {
            "name": "fmnist",
            "data": {"source": {"type": "digits"}},
            "model": {"type": "resnet18"},
            "optimizer": {"type": "adamw", **optimizer},
        }
    )


def take(paths, config=None, resume=False, kind="run"):
    config = config or experiment()
    return open_run(
        paths,
        digest=config_digest(config),
        config_yaml=dump_yaml(config),
        resume=resume,
        difference=digest_difference,
        kind=kind,
    )


def test_a_fresh_run(paths):
    with take(paths) as run:
        assert not run.resumed
        assert run.notes == []
        assert load_config(paths.config) == experiment()
        status = read_json(paths.status)
        assert status["format"] == 1
        assert status["state"] == "running"
        assert status["digest"] == config_digest(experiment())
        assert run_state(paths) == "running"
    assert run_state(paths) == "stopped", "it never said how it ended"
    assert [line["event"] for line in read_lines(paths.events)] == ["started"]


def test_an_unfinished_run_asks_for_resume(paths):
    with take(paths) as run:
        run.status.progress(40, 1.5)
        run.status.finish("interrupted", "by SIGINT")
    with pytest.raises(RunFolderError, match=r"unfinished run \(step 40\); add --resume"):
        take(paths)
    with take(paths, resume=True) as run:
        assert run.resumed
        assert (run.status.status.state, run.status.status.restarts) == ("running", 1)
        assert run.status.status.ended is None
    assert [line["event"] for line in read_lines(paths.events)] == ["started", "resumed"]


@pytest.mark.parametrize("state", ["done", "pruned"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_asks_for_another_name(paths, state, resume):
    with take(paths) as run:
        run.status.finish(state, "all 3 epochs trained")
    with pytest.raises(RunFolderError, match=r"finished.*choose name="):
        take(paths, resume=resume)
    assert Status.read(paths.status).state == state, "a refusal changes nothing"
    take(RunPaths(paths.root.with_name("other"))).close()


def test_a_failed_run_may_be_resumed(paths):
    with take(paths) as run:
        run.status.finish("failed", "NaN")
    with take(paths, resume=True) as run:
        assert run.resumed


@pytest.mark.parametrize("resume", [False, True])
def test_another_digest_is_refused_with_the_difference(paths, resume):
    take(paths, experiment(lr=0.001)).close()
    with pytest.raises(RunFolderError) as caught:
        take(paths, experiment(lr=0.003), resume=resume)
    assert "optimizer.lr: 0.001 -> 0.003" in str(caught.value)
    assert "choose name=" in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_does_not_change_results_may_change(paths):
    take(paths).close()
    other = config_from_mapping({**experiment().model_dump(mode="json"), "scale": {"cpus": 2}})
    assert take(paths, other, resume=True).resumed


def test_a_configuration_that_can_not_be_read_any_more_still_refuses(paths):
    take(paths, experiment(lr=0.001)).close()
    paths.config.write_text("model: {type: gone}")
    with pytest.raises(RunFolderError, match="digest: "):
        take(paths, experiment(lr=0.003), resume=True)


def test_resuming_nothing_starts_afresh_and_says_so(paths):
    with take(paths, resume=True) as run:
        assert not run.resumed
        assert "nothing to resume" in run.notes[0]


def test_a_process_killed_while_it_began_is_begun_again(paths):
    paths.root.mkdir(parents=True)
    paths.config.write_text("name: half")
    with take(paths) as run:
        assert not run.resumed
    assert load_config(paths.config) == experiment()


def test_a_sweep_and_a_run_do_not_share_a_name(paths):
    take(paths, kind="sweep").close()
    with pytest.raises(RunFolderError, match="holds a sweep already; choose name="):
        take(paths, resume=True)


@pytest.mark.parametrize(("file", "what"), [("ensemble.json", "an ensemble"), ("study.db", "a sw")])
def test_other_peoples_folders_are_left_alone(paths, file, what):
    paths.root.mkdir(parents=True)
    (paths.root / file).write_text("{}")
    with pytest.raises(RunFolderError, match=what):
        take(paths, resume=True)
    assert not paths.config.exists()


def test_a_broken_status_is_named(paths):
    paths.root.mkdir(parents=True)
    paths.status.write_text("{")
    with pytest.raises(RunFolderError, match=r"status\.json"):
        take(paths)


def test_a_runs_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunFolderError, match="--runs-dir"):
        take(RunPaths(tmp_path / "runs" / "fmnist"))


def test_a_refusal_frees_the_folder(paths):
    take(paths).close()
    for _ in range(2):
        with pytest.raises(RunFolderError, match="add --resume"):
            take(paths)
    take(paths, resume=True).close()


OPEN = """
import sys
from pathlib import Path
from orchestrator.run_folder.opening import open_run
from orchestrator.run_folder.paths import RunPaths
run = open_run(RunPaths(Path(sys.argv[1])), digest=sys.argv[2], config_yaml="a: 1", resume=False)
print("open", flush=True)
sys.stdin.readline()
"""


def test_a_killed_run_is_resumed_by_another_process(paths):
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, str(paths.root), config_digest(experiment())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "open\n"
    assert run_state(paths) == "running"
    with pytest.raises(RunFolderError, match=f"process {process.pid}"):
        take(paths, resume=True)
    process.kill()
    process.communicate()
    assert run_state(paths) == "stopped"
    with take(paths, resume=True) as run:
        assert run.resumed
        assert f"process {process.pid}" in run.notes[0]


def test_a_run_of_a_lost_machine_is_resumed_once_it_is_silent(paths, monkeypatch):
    monkeypatch.setattr(lease, "STALE_S", 0.5)
    take(paths).close()
    gone = replace(Holder.current(), machine="elsewhere", host="node7")
    paths.lease.write_text(json.dumps({"format": 1, **asdict(gone)}))
    with take(paths, resume=True) as run:
        assert "node7 ended without closing the run" in run.notes[0]


def test_repeating_a_runs_own_file_goes_beside_it(paths):
    runs = paths.root.parent
    take(paths).close()
    assert place_run(runs, "fmnist", paths.config, resume=False).name == "fmnist-2"
    assert place_run(runs, "fmnist", paths.config, resume=True).name == "fmnist"
    assert place_run(runs, "fmnist", runs / "other.yaml", resume=False).name == "fmnist"
    assert place_run(runs, "fmnist", None, resume=False).name == "fmnist"
    take(RunPaths(runs / "fmnist-2")).close()
    assert next_name(paths).name == "fmnist-3"
    assert next_name(RunPaths(runs / "fmnist-2")).name == "fmnist-3"
    assert next_name(RunPaths(runs / "vgg-16")).name == "vgg-16-2"


# --- what a resumed run may not change -----------------------------------------------------


def small(source, *overrides):
    """A file of four steps."""
    return config_from_mapping(
        {
            "name": "small",
            "data": {"source": source, "split": {"val": 0.25, "select": 0}},
            "model": {"type": "mlp", "hidden": [8]},
            "scale": {"cpus": 1, "gpus": 0},
            "train": {
                "for": "4 steps",
                "batch_size": 8,
                "precision": "fp32",
                "memory_format": "contiguous",
            },
            "evaluate": {"every": "1 steps"},
            "checkpoint": {"every": "1 steps"},
        },
        overrides,
    )


def train(worker, config, root, resume=False, steps=4):
    """Runs a file, in a process that knows no data yet, and leaves it after so many steps."""
    memory._memory.clear()
    for info in run(config, worker=worker, root=root, resume=resume):
        if info.step == steps < 4:
            return


def resume_with_other_data(worker, folder):
    """What a rank is told when images came between, and what the run's folder then says."""
    folder = Path(folder)
    os.environ["ORCH_CACHE"] = str(folder / "cache")
    images, copy, paths = folder / "images", folder / "copy" / "images", RunPaths(folder / "run")

    def source(path):
        known = {"type": "image_folder", "path": str(path), "size": 8, "channels": 1}
        return small(known, "scale.workers=2")

    if worker.is_main:
        draw(images, 0, 12)
        shutil.copytree(images, copy)
    worker.barrier()
    train(worker, source(images), paths.root, steps=2)
    worker.barrier()
    before = read_json(paths.env)
    if worker.is_main:
        draw(images, 12, 3)
    worker.barrier()
    with pytest.raises(RunFolderError) as refused:
        train(worker, source(images), paths.root, resume=True)
    worker.barrier()
    kept = read_json(paths.env) == before
    worker.barrier()
    train(worker, source(copy), paths.root, resume=True)
    return str(refused.value), kept


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    ranks = in_group(2, resume_with_other_data, str(tmp_path))
    assert ranks[0] == ranks[1]
    told, kept = ranks[0]
    assert "the data changed since the run in" in told
    assert "choose name=" in told
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == [
        "data.digest",
        "data.split_digest",
    ]
    assert kept, "or the next attempt would be let through"
    status = Status.read(tmp_path / "run" / "status.json")
    assert (status.state, status.step) == ("done", 4), "the same data in another place will do"


def test_a_run_does_not_go_on_towards_another_goal(tmp_path):
    paths, digits = RunPaths(tmp_path / "run"), {"type": "digits"}
    asked = small(digits)
    train(SingleWorker(), asked, paths.root, steps=2)
    before = paths.status.read_bytes()
    other = small(digits, "evaluate.monitor=val/nll", "evaluate.mode=min")
    assert config_digest(other) == config_digest(asked)
    lines = "choose name=.*evaluate.monitor: val/accuracy -> val/nll.*evaluate.mode: max -> min"
    for refuse in (train, lambda _, config, root, resume: check_folder(config, root, resume)):
        with pytest.raises(RunFolderError, match=f"(?s){lines}"):
            refuse(SingleWorker(), other, paths.root, resume=True)
    assert paths.status.read_bytes() == before
    train(SingleWorker(), asked, paths.root, resume=True)
    with pytest.raises(RunFolderError, match="holds a finished run"):
        train(SingleWorker(), other, paths.root)


# --- the status ----------------------------------------------------------------------------


def test_status_is_read_back_as_written(paths):
    with take(paths) as run:
        run.status.progress(10, 0.5, {"val/loss": 0.3, "train/loss": 0.4})
        run.status.progress(20, 1.0, {"val/loss": 0.2})
        run.status.best(20, 0.2, {"val/loss": 0.2})
        run.status.timing("train", 1.5)
        run.status.timing("train", 2.0)
        run.status.finish("done", "all steps trained")
    status = Status.read(paths.status)
    assert (status.step, status.epoch) == (20, 1.0)
    assert status.last == {"val/loss": 0.2, "train/loss": 0.4}
    assert status.best == Best(20, 0.2, {"val/loss": 0.2})
    assert status.timings == {"train": 3.5}
    assert (status.state, status.why) == ("done", "all steps trained")
    assert status.started <= status.ended
    assert status.finished


def test_progress_is_not_written_at_every_step(paths):
    with take(paths) as run:
        for step in range(100):
            run.status.progress(step, 0.0)
        assert Status.read(paths.status).step == 0
        run.status.finish("failed", "")
    assert Status.read(paths.status).step == 99


def test_a_resumed_run_goes_back_to_its_checkpoint(paths):
    with take(paths) as run:
        run.status.progress(50, 2.5)
        run.status.best(50, 0.9, {})
    with take(paths, resume=True) as run:
        run.status.rewind(40, 2.0, Best(30, 0.8))
    status = Status.read(paths.status)
    assert (status.step, status.epoch, status.best) == (40, 2.0, Best(30, 0.8, {}))


def test_a_newer_formats_fields_are_passed_over(paths):
    take(paths).close()
    text = paths.status.read_text().replace('"format": 1', '"format": 1, "later": 5')
    paths.status.write_text(text)
    assert Status.read(paths.status).state == "running"
