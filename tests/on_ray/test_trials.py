"""Trials on Ray Tune: warm workers, judgement by report, failures, deaths, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from orchestrator.host import Resources, TrialJob
from tests.on_ray import work

pytestmark = pytest.mark.ray
ONE, PAIR = Resources(), Resources(workers=2)


class Stream:
    """Hands out jobs, keeps what it was told, and prunes trials named ``pruned…`` at step 1."""

    def __init__(self, *jobs: TrialJob, again: bool = False) -> None:
        self.waiting, self.again = list(jobs), again
        self.jobs = {job.id: job for job in jobs}
        self.reports: list[tuple[str, dict]] = []
        self.ends: list[tuple[str, str | None, bool]] = []
        self.running = self.most = 0

    def next(self):
        if not self.waiting:
            return None
        self.running += 1
        self.most = max(self.most, self.running)
        return self.waiting.pop(0)

    def report(self, id, report):
        self.reports.append((id, report))
        return id.startswith("pruned") and report["step"] == 1

    def finished(self, id, error, crashed=False):
        self.running -= 1
        self.ends.append((id, error, crashed))
        if crashed and self.again:
            self.waiting.append(self.jobs[id])

    def steps(self, id):
        return [report["step"] for name, report in self.reports if name == id]


def job(id, call=work.trial, **arguments):
    return TrialJob(id, call, {"steps": 3, **arguments})


def test_every_report_arrives_in_order_and_workers_are_reused(host):
    stream = Stream(*(job(str(n), seconds=0.05) for n in range(12)))
    host.run_trials(stream, ONE, concurrency=2)
    assert sorted(stream.ends) == sorted((str(n), None, False) for n in range(12))
    assert all(stream.steps(str(n)) == [0, 1, 2] for n in range(12))
    assert stream.reports[0][1]["nested"] == {"a": [1, 2]}
    assert stream.most == 2
    assert len({report["pid"] for _, report in stream.reports}) == 2


def test_a_pruned_trial_is_closed_before_it_is_called_finished(host, tmp_path):
    closed = tmp_path / "closed"
    seen = []
    stream = Stream(job("pruned", steps=100, closed=str(closed)), job("next"))
    tell = stream.finished
    stream.finished = lambda *args, **kw: (seen.append(closed.exists()), tell(*args, **kw))
    host.run_trials(stream, ONE, concurrency=1)
    assert stream.steps("pruned") == [0, 1]
    assert seen[0] and closed.read_text() == "1"
    assert stream.ends == [("pruned", None, False), ("next", None, False)]
    assert len({report["pid"] for _, report in stream.reports}) == 1


def test_a_failed_trial_says_why_and_its_worker_is_replaced(host):
    stream = Stream(job("bad", fail_at=1), job("good"))
    host.run_trials(stream, ONE, concurrency=1)
    (bad, error, crashed), good = stream.ends
    assert (bad, crashed) == ("bad", False)
    assert error.startswith("ValueError: bad luck (traceback in ")
    trace = Path(error.split("traceback in ")[1].rstrip(")"))
    assert trace.name == "bad.txt" and "in trial" in trace.read_text()
    assert good == ("good", None, False)
    assert stream.reports[0][1]["pid"] != stream.reports[-1][1]["pid"]


@pytest.mark.slow  # tests/lab kills a worker of a real sweep
def test_a_trial_whose_worker_died_may_run_again(host, tmp_path):
    stream = Stream(job("a", die_at=1, marker=str(tmp_path / "died")), again=True)
    host.run_trials(stream, ONE, concurrency=1)
    (_, error, crashed), end = stream.ends
    assert crashed and error.startswith("the worker died (process")
    assert end == ("a", None, False)
    assert stream.steps("a") == [0, 0, 1, 2]


def test_a_group_s_trial_reports_and_stops_like_a_single_one(host, tmp_path):
    closed = tmp_path / "closed"
    stream = Stream(job("pruned", work.group_trial, steps=100, closed=str(closed)))
    host.run_trials(stream, PAIR, concurrency=2)
    assert [(values["sum"], values["world_size"]) for _, values in stream.reports] == [
        (1, 2),
        (3, 2),
    ]
    assert [(tmp_path / f"closed-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    assert stream.ends == [("pruned", None, False)]


@pytest.mark.slow
def test_groups_trials_follow_each_other_and_fail_like_single_ones(host):
    stream = Stream(job("bad", work.group_trial, fail_at=1), job("plain", work.group_trial))
    host.run_trials(stream, PAIR, concurrency=2)
    (_, error, crashed), plain = stream.ends
    assert error.startswith("rank 1: ValueError: bad luck (traceback in ") and not crashed
    assert plain == ("plain", None, False)
    assert stream.steps("plain") == [0, 1, 2]
    assert stream.most == 1  # two groups of two do not fit


@pytest.mark.slow
def test_a_group_s_trial_runs_again_after_a_worker_died(host, tmp_path):
    marker = str(tmp_path / "died")
    stream = Stream(job("a", work.group_trial, die_at=1, marker=marker), again=True)
    host.run_trials(stream, PAIR, concurrency=1)
    (_, error, crashed), end = stream.ends
    assert crashed and "rank 1 died" in error
    assert end == ("a", None, False)


@pytest.mark.slow
def test_trials_of_a_lost_node_go_on_elsewhere(cluster, host, tmp_path):
    node = cluster.add_node(num_cpus=4)
    stream = Stream(job("a", seconds=0.5, steps=6), again=True)
    take = stream.report

    def report(id, values):
        if not stream.reports:
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=4)
        return take(id, values)

    stream.report = report
    host.run_trials(stream, Resources(cpus=4), concurrency=1)
    assert [crashed for _, _, crashed in stream.ends] == [True, False]
    assert stream.steps("a")[-6:] == [0, 1, 2, 3, 4, 5]
    cluster.remove_node(next(n for n in cluster.list_all_nodes() if n != cluster.head_node))


def test_an_error_of_the_stream_comes_back_as_it_was(host):
    stream = Stream(job("a"))
    stream.report = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        host.run_trials(stream, ONE, concurrency=1)


def test_nothing_is_left_behind(host, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    host.run_trials(Stream(job("a")), ONE, concurrency=1)
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 120
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


SWEEP = """
import sys
sys.path.insert(0, {tests!r})
from orchestrator.host import Resources, TrialJob
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_host import RayHost
from tests.on_ray import work
from tests.on_ray.test_trials import Stream
folder = sys.argv[1]
jobs = [TrialJob(n, work.interruptible_trial, dict(folder=folder, name=n)) for n in "abc"]
stream = Stream(*jobs)
host = RayHost(start_or_attach(cpus=2))
try:
    host.run_trials(stream, Resources(), 2)
except KeyboardInterrupt:
    print("interrupted", stream.ends)
finally:
    host.close()
"""


def test_ctrl_c_lets_running_trials_end_in_order(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP.format(tests=str(Path(__file__).parents[2])))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        started = [tmp_path / f"{name}-started" for name in "ab"]
        deadline = time.monotonic() + 120
        while not all(one.exists() for one in started):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    # Two ran and wrote their checkpoint; neither counts as finished, and the third never began.
    assert said.strip().endswith("interrupted []")
    assert {"a-interrupted", "b-interrupted"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("c-*"))
