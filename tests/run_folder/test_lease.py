"""One writer at a time, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from orchestrator.errors import RunFolderError
from orchestrator.run_folder import lease as module
from orchestrator.run_folder.lease import Holder, Lease, lease_holder

HOLD = """
import sys
from pathlib import Path
from orchestrator.run_folder.lease import Lease
lease = Lease(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
lease.release()
"""

RACE = """
import sys
from pathlib import Path
from orchestrator.errors import RunFolderError
from orchestrator.run_folder.lease import Lease
path, go = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    pass
try:
    lease = Lease(path)
    print("won", flush=True)
    sys.stdin.readline()
except RunFolderError:
    print("lost", flush=True)
"""


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease.json"


def leave(path, age=0.0, **changes):
    """A lease that somebody left behind `age` seconds ago."""
    holder = replace(Holder.current(), **changes)
    path.write_text(json.dumps({"format": 1, **asdict(holder)}))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))


def test_second_is_refused_and_told_who_holds_it(path):
    process = python(HOLD, path)
    assert process.stdout.readline() == "held\n"
    assert lease_holder(path).pid == process.pid
    with pytest.raises(RunFolderError, match=f"written by process {process.pid} on .*name="):
        Lease(path)
    process.communicate("\n", timeout=180)
    assert lease_holder(path) is None
    with Lease(path) as lease:
        assert lease.taken_from is None
        assert lease_holder(path).pid == os.getpid()
    assert lease_holder(path) is None


def test_the_same_process_is_refused_too(path):
    with Lease(path), pytest.raises(RunFolderError):
        Lease(path)


def test_a_killed_holder_is_taken_over_at_once(path):
    process = python(HOLD, path)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Lease(path) as lease:
        assert lease.taken_from.pid == process.pid


@pytest.mark.parametrize("left", ["nothing", "dead", "torn"])
def test_exactly_one_of_several_racers_wins(path, tmp_path, left):
    if left == "dead":
        leave(path, pid=2**22 + 1)
    if left == "torn":
        path.write_text('{"format": 1, "ho')
    racers = [python(RACE, path, tmp_path / "go") for _ in range(4)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    # The winner holds it until every other one has tried.
    answers = sorted(racer.stdout.readline() for racer in racers)
    for racer in racers:
        racer.communicate(timeout=180)
    assert answers == ["lost\n", "lost\n", "lost\n", "won\n"]


def test_another_machine_is_given_up_only_after_its_heartbeat_stops(path):
    leave(path, age=30, machine="elsewhere", host="node7", pid=1)
    with pytest.raises(RunFolderError, match="process 1 on node7"):
        Lease(path)
    leave(path, age=61, machine="elsewhere", host="node7", pid=1)
    with Lease(path) as lease:
        assert lease.taken_from.host == "node7"


def test_who_waits_gets_the_lease_of_a_machine_whose_heartbeat_stopped(path, monkeypatch):
    monkeypatch.setattr(module, "STALE_S", 0.5)
    leave(path, machine="elsewhere", host="node7", pid=1)
    with Lease(path, wait=True) as lease:
        assert lease.taken_from.host == "node7"


def test_who_waits_is_refused_at_the_next_heartbeat(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    leave(path, machine="elsewhere", host="node7", pid=1)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(path)

    holder = threading.Thread(target=beat)
    holder.start()
    try:
        with pytest.raises(RunFolderError, match="process 1 on node7"):
            Lease(path, wait=True)
    finally:
        ended.set()
        holder.join()


def test_a_holder_that_can_be_asked_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with Lease(path), pytest.raises(RunFolderError):
        Lease(path, wait=True)


def test_a_pid_that_was_used_again_is_not_the_holder(path):
    leave(path, process_started=1.0)
    Lease(path).release()
    # Another process of the same pid is only believed dead when its heartbeat stopped as well.
    leave(path, pid=1, process_started=1.0)
    with pytest.raises(RunFolderError):
        Lease(path)
    leave(path, age=61, pid=1, process_started=1.0)
    Lease(path).release()


def test_the_heartbeat_beats(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with Lease(path):
        os.utime(path, (1, 1))
        for _ in range(1200):
            if path.stat().st_mtime > 1:
                break
            module.time.sleep(0.05)
        assert path.stat().st_mtime > 1


def test_a_holder_that_was_taken_over_notices_and_leaves_the_new_lease_alone(path):
    lease = Lease(path)
    lease.check()
    leave(path, token="new", host="node7")
    with pytest.raises(RunFolderError, match=r"taken over by process .* on node7"):
        lease.check()
    lease.release()
    assert json.loads(path.read_text())["token"] == "new"
