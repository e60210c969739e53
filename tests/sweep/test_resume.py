"""A sweep that is killed and resumed ends as one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from orchestrator.errors import RunFolderError
from orchestrator.files import write_json
from orchestrator.run_folder.paths import RunPaths
from orchestrator.sweep.events import TrialFinished, TrialPruned, TrialStarted
from orchestrator.sweep.leaderboard import leaderboard
from orchestrator.sweep.study import load_study
from tests.sweep.fake_trials import SPACE, job_of, make_config, make_planner, run_sweep

ASHA = {"type": "asha", "grace": "1 epoch", "reduction": 2}


def outcome(root):
    """All that matters of a study."""
    return [
        (trial.number, trial.state.name, trial.params, trial.intermediate_values, trial.values)
        for trial in load_study(RunPaths(root).study).trials
    ]


def killed_sweep(root, sampler, scheduler, reports, when):
    script = Path(__file__).with_name("fake_trials.py")
    arguments = [str(root), sampler, json.dumps(scheduler), str(reports), when]
    ended = subprocess.run([sys.executable, script, *arguments], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.parametrize(
    ("sampler", "reports", "when"), [("random", 10, "before"), ("tpe", 9, "after")]
)
def test_a_killed_sweep_ends_as_one_that_was_not(tmp_path, sampler, reports, when):
    config = make_config(sampler={"type": sampler}, scheduler=ASHA)
    run_sweep(config, tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    assert {state for _, state, *_ in whole} == {"COMPLETE", "PRUNED"}

    root = tmp_path / "killed"
    killed_sweep(root, sampler, ASHA, reports, when)
    before = outcome(root)
    running = [number for number, state, *_ in before if state == "RUNNING"]
    finished = [number for number, state, *_ in before if state != "RUNNING"]
    assert len(running) == 1
    assert finished
    events = []
    run_sweep(config, root, events=events)

    started = [event for event in events if isinstance(event, TrialStarted)]
    assert not {int(event.id) for event in started} & set(finished)
    assert outcome(root) == whole


def test_trials_that_ended_while_no_one_listened_are_told(tmp_path):
    """The driver died between a trial's last report and its end."""
    config = make_config(trials=2, scheduler=ASHA)
    planner = make_planner(config, tmp_path)
    job = planner.next()
    reports = list(job.call(worker=None, **job.arguments))  # not one of them is passed on
    events = []
    again = make_planner(config, tmp_path, events=events)
    assert [type(event) for event in events] == [TrialFinished]
    trial = load_study(RunPaths(tmp_path).study).trials[0]
    assert trial.state.name == "COMPLETE"
    assert len(trial.intermediate_values) == len(reports)
    assert trial.value == max(report["values"]["val/accuracy"] for report in reports)
    assert again.next().id == "001"


def test_a_stop_that_was_decided_is_not_forgotten(tmp_path):
    config = make_config(scheduler=ASHA)
    planner = make_planner(config, tmp_path)
    for value in (0.9, 0.1):
        job = planner.next()
        stop = planner.report(job.id, {"step": 10, "epoch": 1.0, "values": {"val/accuracy": value}})
    assert stop
    events = []
    again = make_planner(config, tmp_path, events=events)
    assert [(type(event), event.id) for event in events] == [(TrialPruned, "001")]
    resumed = again.next()
    assert (resumed.id, resumed.arguments["spec"].resume) == ("000", True)
    assert again.next().id == "002"


def test_a_trial_without_all_its_parameters_gets_the_rest(tmp_path):
    config = make_config()
    planner = make_planner(config, tmp_path)
    expected = planner.next().arguments["spec"].overrides
    other = tmp_path / "other"
    make_planner(config, other)
    load_study(RunPaths(other).study).ask()  # dies here, before any parameter is drawn
    job = make_planner(config, other).next()
    assert job.id == "000"
    assert job.arguments["spec"].overrides == expected


def test_resuming_a_finished_sweep_starts_nothing_and_growing_it_goes_on(tmp_path):
    run_sweep(make_config(trials=3), tmp_path)
    assert make_planner(make_config(trials=3), tmp_path).next() is None
    assert make_planner(make_config(trials=2), tmp_path).next() is None
    events = []
    run_sweep(make_config(trials=5), tmp_path, events=events)
    assert [e.id for e in events if isinstance(e, TrialStarted)] == ["003", "004"]
    run_sweep(make_config(trials=5), tmp_path / "at once")
    assert outcome(tmp_path) == outcome(tmp_path / "at once")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 2}, "seed: 1 -> 2"),
        ({"mode": "min"}, 'evaluate.mode: "max" -> "min"'),
        ({"monitor": "val/loss"}, "evaluate.monitor"),
        ({"sampler": {"type": "random"}}, 'sweep.sampler.type: "tpe" -> "random"'),
        ({"scheduler": ASHA}, 'sweep.scheduler.grace: \\(absent\\) -> "1 epoch"'),
        (
            {"space": {**SPACE, "optimizer.lr": {"type": "uniform", "low": 0.1, "high": 0.2}}},
            "sweep.space.optimizer.lr.low: 0.0001 -> 0.1",
        ),
    ],
)
def test_another_search_is_refused_with_the_difference(tmp_path, changes, named):
    make_planner(make_config(), tmp_path)
    with pytest.raises(RunFolderError, match=named):
        make_planner(make_config(**changes), tmp_path)


def test_a_file_that_is_no_study_is_refused(tmp_path):
    RunPaths(tmp_path).study.write_text("not a data base " * 100)
    with pytest.raises(RunFolderError, match="not an Optuna study"):
        make_planner(make_config(), tmp_path)
    with pytest.raises(RunFolderError, match="not a sweep"):
        leaderboard(RunPaths(tmp_path / "nothing"))


def test_an_empty_data_base_is_filled(tmp_path):
    """The driver died before the study was created."""
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    assert leaderboard(RunPaths(tmp_path)) == []
    assert make_planner(make_config(), tmp_path).next().id == "000"


def test_an_interrupted_trial_is_handed_out_again_without_being_counted(tmp_path):
    planner = make_planner(make_config(max_failures=0), tmp_path, job_of)
    for _ in range(3):
        job = planner.next()
        assert job.id == "000"
        folder = RunPaths(job.arguments["spec"].folder)
        folder.root.mkdir(parents=True, exist_ok=True)
        write_json(folder.status, {"format": 1, "state": "interrupted"})
        planner.finished(job.id, None)
