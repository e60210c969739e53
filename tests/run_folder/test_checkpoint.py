"""Checkpoints survive kills, full disks and damaged files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from orchestrator.errors import CheckpointError
from orchestrator.run_folder.checkpoint import Checkpoints, CheckpointStore


def save(store, step, metric=None, data=b"x" * 1000, **meta):
    with store.save(step, meta=meta, metric=metric) as folder:
        (folder / "model.pt").write_bytes(data)
        (folder / "rank").mkdir()
        (folder / "rank" / "0.pt").write_bytes(b"rank" + data)
    return store.latest()


def steps(store):
    return [one.step for one in store.valid()]


def test_commit_and_read_back(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    one = save(store, 10, 0.5, epoch=1.5, best={"step": 10})
    assert one.path == tmp_path / "checkpoints" / "10"
    assert (one.step, one.metric, one.meta) == (10, 0.5, {"epoch": 1.5, "best": {"step": 10}})
    assert sorted(one.files) == ["model.pt", "rank/0.pt"]
    assert one.size == 1000 + 1004
    assert one.faults() == []
    manifest = json.loads((one.path / "manifest.json").read_text())
    assert manifest["format"] == 1
    # sha256 of 1000 letters x, by coreutils' sha256sum
    digest = subprocess.run(
        ["sha256sum", str(one.path / "model.pt")], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert manifest["files"]["model.pt"] == {"sha256": digest, "size": 1000}


def test_keeps_the_newest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=2, mode="max")
    for step, metric in enumerate([0.1, 0.9, 0.8, 0.9, 0.2, float("nan"), 0.3], start=1):
        save(store, step, metric)
    assert steps(store) == [2, 4, 6, 7]
    assert store.best().step == 2, "of two equal ones, the earlier"
    assert store.valid()[2].metric is None, "NaN is no metric"


def test_smallest_is_best_when_asked(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=1, mode="min")
    for step, metric in enumerate([0.5, 0.1, 0.3, 0.4], start=1):
        save(store, step, metric)
    assert steps(store) == [2, 4]


def test_without_metrics_only_the_newest_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3, keep_best=5)
    for step in range(6):
        save(store, step)
    assert steps(store) == [3, 4, 5]
    assert store.best() is None
    assert store.best_intact() is None


def test_zero_to_keep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last=0"):
        CheckpointStore(tmp_path, keep_last=0)


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 3, data=b"old")
    one = save(store, 3, 0.7, data=b"new")
    assert (one.path / "model.pt").read_bytes() == b"new"
    assert one.metric == 0.7
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_killed_between_the_renames_of_a_replacement_restores_the_old(tmp_path):
    save(CheckpointStore(tmp_path), 3)
    (tmp_path / "3").rename(tmp_path / "3.old-ab")
    assert steps(CheckpointStore(tmp_path)) == [3]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "add"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    notices = []
    store = CheckpointStore(tmp_path, keep_last=3, notice=notices.append)
    for step in (1, 2, 3):
        save(store, step, metric=step)
    file = tmp_path / "3" / "model.pt"
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    {
        "truncate": lambda: os.truncate(file, 10),
        "flip": lambda: file.write_bytes(data),
        "remove": file.unlink,
        "add": lambda: (tmp_path / "3" / "planted.pt").write_bytes(b"pickle"),
    }[damage]()
    assert store.latest_intact().step == 2
    assert store.best_intact().step == 2
    if damage in ("flip", "add"):
        assert "checkpoint 3 is damaged" in notices[0]
        assert ("model.pt" if damage == "flip" else "planted.pt") in notices[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 3}', '{"step": 4, "files": {}}'])
def test_a_checkpoint_without_a_valid_manifest_does_not_exist(tmp_path, text):
    store = CheckpointStore(tmp_path)
    save(store, 2)
    save(store, 3)
    (tmp_path / "3" / "manifest.json").write_text(text)
    assert store.latest().step == 2


def test_when_all_are_damaged_it_says_so(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.latest_intact() is None
    save(store, 1)
    (tmp_path / "1" / "model.pt").write_bytes(b"y" * 1000)
    with pytest.raises(CheckpointError, match=r"every checkpoint .* damaged"):
        store.latest_intact()


def test_the_only_valid_one_outlives_damaged_newer_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=0)
    save(store, 1)
    (tmp_path / "2").mkdir()
    assert steps(store) == [1]
    (tmp_path / "2").rmdir()
    with pytest.raises(CheckpointError), store.save(2) as folder:
        (folder / "model.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert steps(store) == [1]


def test_readers_leave_a_writers_files_alone(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.begin(5)
    (path / "model.pt").write_bytes(b"1")
    assert Checkpoints(tmp_path).valid() == []
    store.commit(path)
    assert Checkpoints(tmp_path).latest().step == 5


def test_leftovers_are_removed_on_open(tmp_path):
    path = CheckpointStore(tmp_path).begin(5)
    (path / "model.pt").write_bytes(b"1")
    CheckpointStore(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_saving_leaves_nothing(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.save(1):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# --- real faults ---------------------------------------------------------------------------

FILE_LIMIT = """
import resource, signal, sys, torch
from pathlib import Path
from orchestrator.run_folder.checkpoint import CheckpointStore
from orchestrator.errors import CheckpointError
folder, how = Path(sys.argv[1]), sys.argv[2]
store = CheckpointStore(folder)
with store.save(1) as path:
    (path / "model.pt").write_bytes(b"small")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with store.save(2) as path:
        if how == "torch":
            torch.save({"weight": torch.zeros(100_000)}, path / "model.pt")
        else:
            (path / "model.pt").write_bytes(b"0" * 200_000)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["plain", "torch"])
def test_a_file_that_can_not_grow(tmp_path, how):
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(tmp_path), how], capture_output=True, text=True
    )
    assert "could not write checkpoint 2" in done.stdout, done.stderr
    assert "checkpoint 1 is untouched" in done.stdout
    assert "--resume" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert Checkpoints(tmp_path).latest_intact().step == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_checkpoints(small_disk):
    store = CheckpointStore(small_disk / "checkpoints", keep_last=5)
    saved = 0
    with pytest.raises(CheckpointError, match=r"No space left on device.*MiB free"):
        for step in range(1, 10):
            save(store, step, data=os.urandom(300_000))
            saved = step
    assert saved == 3
    assert steps(store) == [1, 2, 3]
    assert store.latest_intact().step == 3
    assert len(list(store.folder.iterdir())) == 3, "nothing half-written stays"
    store.remove(store.valid()[0])
    save(store, 4, data=os.urandom(300_000))
    assert steps(store) == [2, 3, 4]


def test_torch_save_on_a_full_disk(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    save(store, 1)
    with pytest.raises(CheckpointError, match="checkpoint 1 is untouched"), store.save(2) as path:
        torch.save({"weight": torch.zeros(2_000_000)}, path / "model.pt")
    assert store.latest_intact().step == 1


WRITER = """
import os, sys
from pathlib import Path
from orchestrator.run_folder.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep_last=2, keep_best=1)
print("ready", flush=True)
step = store.latest().step if store.latest() else 0
while True:
    step += 1
    with store.save(step, metric=-step) as path:
        for rank in range(3):
            (path / f"{rank}.pt").write_bytes(bytes([step % 251]) * 200_000)
"""


def committed(folder):
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def test_killed_at_random_moments(tmp_path):
    chance = random.Random(0)
    last = 0
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        reader = Checkpoints(tmp_path)
        # Every other one commits something first, however slow the disk is.
        while attempt % 2 and max(committed(tmp_path), default=0) <= last:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0.01, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if reader.valid():
            newest = reader.latest_intact()
            assert newest.step == reader.latest().step >= last, "what was committed stays"
            assert all(one.faults() == [] for one in reader.valid())
            data = (newest.path / "2.pt").read_bytes()
            assert data == bytes([newest.step % 251]) * 200_000
            last = newest.step
    assert last > 5
    store = CheckpointStore(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {str(step) for step in steps(store)}
