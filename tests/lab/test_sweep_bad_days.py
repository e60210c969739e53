"""`orch sweep` on bad days: its driver or a trial's worker is killed, Ctrl-C, a second sweep."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

from tests.lab.conftest import assert_nothing_left, wait_for

pytestmark = pytest.mark.ray


def finished_trials(lab, name):
    found = {}
    for path in sorted((lab.runs / name / "trials").glob("*/status.json")):
        status = json.loads(path.read_text())
        if status["state"] == "done":
            found[path.parent.name] = status
    return found


@pytest.fixture(scope="module")
def killed_drivers():
    """Drivers of which nothing may be left at the end.

    Ray's agents try for a minute to tell their killed servers before they end; other tests don't
    wait for that.
    """
    leaders: list[int] = []
    yield leaders
    for leader in leaders:
        assert_nothing_left(leader)


@pytest.mark.slow
def test_a_whole_pipeline_and_a_second_sweep_of_the_name(lab):
    process = lab.start("sweep", "sweep.yaml", "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    names = [line["name"] for line in json.loads(out)["results"]]
    assert names == ["best single", "ensemble", "student", "baseline"]
    assert json.loads(out)["split"] == "test"
    assert_nothing_left(process.pid)
    again = lab.run("sweep", "sweep.yaml", code=2)
    assert "name=" in again.stderr


@pytest.mark.timeout(1800)
def test_a_killed_driver_repeats_no_finished_trial(lab, killed_drivers):
    process = lab.start("sweep", "sweep.yaml", "distill=null")
    wait_for(lambda: len(finished_trials(lab, "lab")) >= 2, process, "no two trials finished")
    process.kill()
    process.wait()
    before = finished_trials(lab, "lab")
    refused = lab.run("sweep", "sweep.yaml", "distill=null", code=2)
    assert "--resume" in refused.stderr
    lab.run("sweep", "sweep.yaml", "distill=null", "--resume")
    after = finished_trials(lab, "lab")
    assert len(after) == 4
    for trial, status in before.items():
        assert after[trial] == status, f"trial {trial} ran again"
    killed_drivers.append(process.pid)


def test_a_killed_worker_is_replaced_and_the_trial_goes_on(lab):
    process = lab.start("sweep", "sweep.yaml", "distill=null", "ensemble=null")
    holder = lab.runs / "lab/trials/000/lease.json"
    wait_for(lambda: len(lab.lines("lab/trials/000")) > 2, process, "trial 000 never logged")
    worker = psutil.Process(json.loads(holder.read_text())["pid"])
    assert os.getsid(worker.pid) == process.pid
    worker.kill()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "started again" in err
    assert len(finished_trials(lab, "lab")) == 4
    assert lab.status("lab/trials/000")["restarts"] == 1
    assert_nothing_left(process.pid)


def test_ctrl_c_leaves_nothing(lab):
    process = lab.start("sweep", "sweep.yaml", "distill=null", "ensemble=null")
    wait_for(lambda: len(lab.lines("lab/trials/000")) > 2, process, "trial 000 never logged")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert_nothing_left(process.pid)


def test_failed_trials_are_explained_and_not_fatal(lab):
    space = "sweep.space={optimizer.lr: {type: choice, values: [1e30, 5e-3]}}"
    arguments = ("schedule={type: constant}", "sweep.sampler={type: grid}", "train.for=1 epoch")
    done = lab.run(
        "sweep", "sweep.yaml", space, *arguments, "ensemble=null", "distill=null", "sweep.trials=2"
    )
    assert "failed: the loss became" in done.stderr
    rows = json.loads((lab.runs / "lab/leaderboard.json").read_text())["trials"]
    assert sorted(row["state"] for row in rows) == ["complete", "failed"]
