"""`metrics.jsonl`, the fake tracker, and who is told what."""

from __future__ import annotations

import math

import pytest

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.host import SingleWorker
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import drop_after, read_lines
from orchestrator.tracking.base import TrackerGroup, artifact_of, build_tracker, display_name
from orchestrator.tracking.memory import DictTracker
from orchestrator.tracking.run_file import RunFileTracker


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path / "fmnist")


def experiment(**sections):
    return ExperimentConfig.model_validate(
        {
            "name": "fmnist",
            "data": {"source": {"type": "digits"}},
            "model": {"type": "resnet18"},
            **sections,
        }
    )


def without_wall(paths):
    return [{k: v for k, v in line.items() if k != "wall"} for line in read_lines(paths.metrics)]


def test_one_line_a_split(paths):
    tracker = RunFileTracker(paths)
    tracker.log(5, {"train/loss": 0.5, "train/lr": 1e-3, "val/accuracy": 0.9}, epoch=1 / 3)
    tracker.log(6, {"train/loss": math.nan}, epoch=0.4)
    tracker.finish("done")
    assert without_wall(paths) == [
        {"step": 5, "epoch": 0.333333, "split": "train", "values": {"loss": 0.5, "lr": 1e-3}},
        {"step": 5, "epoch": 0.333333, "split": "val", "values": {"accuracy": 0.9}},
        {"step": 6, "epoch": 0.4, "split": "train", "values": {"loss": None}},
    ]
    assert all(line["wall"] > 1.7e9 for line in read_lines(paths.metrics))


def test_resumed_file_equals_the_uninterrupted_one(tmp_path):
    def log(tracker, steps):
        for step in steps:
            tracker.log(step, {"train/loss": 1 / step}, epoch=step / 10)

    whole, cut = RunPaths(tmp_path / "whole"), RunPaths(tmp_path / "cut")
    log(RunFileTracker(whole), range(1, 11))
    log(RunFileTracker(cut), range(1, 8))
    with cut.metrics.open("ab") as file:
        file.write(b'{"step": 8, "epo')
    # A tracker may be built before the file is cut.
    tracker = RunFileTracker(cut)
    assert drop_after(cut.metrics, 5) == 2
    log(tracker, range(6, 11))
    assert without_wall(cut) == without_wall(whole)


def test_the_group_tells_every_tracker(paths):
    one, two = DictTracker(), DictTracker()
    group = TrackerGroup(one, two)
    group.start({"seed": 1}, name="a", group="g", job_type="trial")
    group.log(1, {"train/loss": 0.5}, epoch=0.1)
    group.log(1, {"val/loss": 0.6}, epoch=0.1)
    group.summary({"val/loss": 0.6})
    group.finish("done")
    for tracker in (one, two):
        assert tracker.run["group"] == "g"
        assert tracker.history == {1: {"train/loss": 0.5, "val/loss": 0.6, "epoch": 0.1}}
        assert tracker.final == {"val/loss": 0.6}
        assert tracker.state == "done"


def test_only_the_first_rank_writes(paths):
    class Second(SingleWorker):
        is_main = False

    tracker = build_tracker(experiment(), paths, Second())
    tracker.log(1, {"train/loss": 0.5}, epoch=0.1)
    tracker.finish("done")
    assert not paths.metrics.exists()
    tracker = build_tracker(experiment(), paths, SingleWorker())
    tracker.log(1, {"train/loss": 0.5}, epoch=0.1)
    assert len(without_wall(paths)) == 1


@pytest.mark.parametrize("wandb", [None, {"mode": "disabled"}])
def test_without_wandb_there_is_no_trace_of_it(paths, wandb):
    tracker = build_tracker(experiment(track={"wandb": wandb}), paths, SingleWorker())
    assert [type(one) for one in tracker.trackers] == [RunFileTracker]
    tracker.finish("done")
    assert not paths.logs.exists()


def test_names_for_people(tmp_path):
    sweep = RunPaths(tmp_path / "fmnist")
    for folder in (sweep.trial(3).root, sweep.student.root, tmp_path / "alone"):
        folder.mkdir(parents=True)
    assert display_name(sweep.trial(3)) == "fmnist/trials/003"
    assert display_name(sweep.student) == "fmnist/student"
    assert display_name(RunPaths(tmp_path / "alone")) == "alone"


def test_artifacts_are_what_a_folder_exports(tmp_path):
    one, two = RunPaths(tmp_path / "a" / "x"), RunPaths(tmp_path / "b" / "x")
    assert artifact_of(one) is None
    for paths in (one, two):
        paths.root.mkdir(parents=True)
        paths.model.write_text("w")
        assert artifact_of(paths) is None, "weights alone are no model"
        paths.model_json.write_text("{}")
    assert artifact_of(one).kind == "model"
    assert set(artifact_of(one).files) == {"model.safetensors", "model.json"}
    assert artifact_of(one).name != artifact_of(two).name
