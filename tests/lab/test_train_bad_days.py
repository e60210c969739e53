"""`orch train` on bad days: kills, Ctrl-C, full disks, damaged files, two writers."""

from __future__ import annotations

import json
import resource
import signal

import pytest

from tests.lab.conftest import wait_for

TIMES = ("samples_per_second",)


def comparable(lines):
    """Metrics without what depends on the clock."""
    return [
        (line["step"], line["split"], {k: v for k, v in line["values"].items() if k not in TIMES})
        for line in lines
    ]


def test_killed_and_resumed_is_the_uninterrupted_run_to_the_bit(lab):
    lab.here("train", "lab.yaml", "name=whole")
    process = lab.start("train", "lab.yaml", "name=killed")
    lab.kill_at(process, "killed", step=45)
    process.wait()
    assert lab.status("killed")["state"] == "running"
    lab.here("train", "lab.yaml", "name=killed", "--resume")
    whole, killed = (lab.runs / name for name in ("whole", "killed"))
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert comparable(lab.lines("whole")) == comparable(lab.lines("killed"))
    assert lab.status("whole")["best"] == lab.status("killed")["best"]
    assert lab.status("killed")["restarts"] == 1


@pytest.mark.timeout(1800)
def test_an_unfinished_run_asks_for_resume_and_a_finished_one_for_a_name(lab):
    process = lab.start("train", "lab.yaml")
    lab.kill_at(process, "lab", step=10)
    process.wait()
    refused = lab.here("train", "lab.yaml", code=2)
    assert "--resume" in refused.stderr
    other = lab.here("train", "lab.yaml", "optimizer.lr=1e-3", "--resume", code=2)
    assert "optimizer.lr" in other.stderr
    lab.here("train", "lab.yaml", "--resume")
    again = lab.here("train", "lab.yaml", code=2)
    assert "name=" in again.stderr
    smaller = lab.here("train", "lab.yaml", "train.batch_size=32", code=2)
    assert "holds a finished run" in smaller.stderr and "name=" in smaller.stderr
    smaller = lab.here("train", "lab.yaml", "train.batch_size=32", "--resume", code=2)
    assert "train.batch_size: 64 -> 32" in smaller.stderr
    lab.here("train", "runs/lab/config.yaml")
    assert lab.status("lab-2")["state"] == "done"
    same = [(lab.runs / name / "model.safetensors").read_bytes() for name in ("lab", "lab-2")]
    assert same[0] == same[1]


def test_ctrl_c_checkpoints_and_resume_goes_on(lab):
    process = lab.start("train", "lab.yaml")
    lab.kill_at(process, "lab", step=20, sig=signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "--resume" in out
    status = lab.status("lab")
    assert status["state"] == "interrupted"
    checkpoints = [int(p.name) for p in (lab.runs / "lab/checkpoints").iterdir()]
    assert max(checkpoints) == status["step"] >= 20
    lab.here("train", "lab.yaml", "--resume")
    assert lab.status("lab")["state"] == "done"


def test_two_runs_into_one_folder(lab):
    long = ("train", "lab.yaml", "train.for=400 epochs")
    first = lab.start(*long)
    wait_for(lambda: lab.lines("lab"), first, "it never began")
    for extra in ((), ("--resume",)):
        second = lab.here(*long, *extra, code=2)
        assert str(first.pid) in second.stderr
    step = lab.lines("lab")[-1]["step"]
    wait_for(lambda: lab.lines("lab")[-1]["step"] > step, first, "the first one was disturbed")
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=600)
    assert first.returncode == 130, err


def test_a_damaged_checkpoint_is_passed_over(lab):
    process = lab.start("train", "lab.yaml")
    lab.kill_at(process, "lab", step=45)
    process.wait()
    newest = max((lab.runs / "lab/checkpoints").iterdir(), key=lambda path: int(path.name))
    model = newest / "model.pt"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0xFF
    model.write_bytes(data)
    lab.here("train", "lab.yaml", "--resume")
    events = (lab.runs / "lab/events.jsonl").read_text()
    assert "damaged" in events
    assert lab.status("lab")["state"] == "done"


def test_a_full_disk_while_checkpointing(lab):
    def limit():
        # Stands for a full disk: the weights don't fit, what is smaller does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = lab.start("train", "lab.yaml")
    lab.kill_at(process, "lab", step=20)
    process.wait()
    before = {path.name for path in (lab.runs / "lab/checkpoints").iterdir()}
    failed = lab.run("train", "lab.yaml", "--resume", code=1, preexec_fn=limit)
    assert "checkpoint" in failed.stderr
    assert "--resume" in failed.stderr
    after = {path.name for path in (lab.runs / "lab/checkpoints").iterdir() if path.name.isdigit()}
    assert after >= {name for name in before if name.isdigit()}
    assert lab.status("lab")["state"] == "failed"
    lab.here("train", "lab.yaml", "--resume")
    assert lab.status("lab")["state"] == "done"


def test_a_loss_that_is_not_a_number_is_explained(lab):
    failed = lab.here("train", "lab.yaml", "optimizer.lr=1e30", "schedule.type=constant", code=1)
    assert "optimizer.lr" in failed.stderr
    assert lab.status("lab")["state"] == "failed"


def test_json_is_one_document(lab):
    done = lab.run("train", "lab.yaml", "train.for=10 steps", "--json")
    document = json.loads(done.stdout)
    assert document["state"] == "done"
    evaluated = lab.run("evaluate", "runs/lab", "--split", "test", "--json")
    assert 0 <= json.loads(evaluated.stdout)["accuracy"] <= 1
    events = (lab.runs / "lab/events.jsonl").read_text()
    assert events.count('"test_read"') == 1
