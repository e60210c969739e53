"""W&B, against a real server: values arrive, and no fault of the server reaches training."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import read_lines
from orchestrator.tracking import weights_biases as module

KEY = "local" + "0" * 40

PRELUDE = """
import json, sys, time
from pathlib import Path
from orchestrator.config.training import (WandbConfig)
from orchestrator.run_folder.paths import RunPaths
from orchestrator.tracking import weights_biases as module
from orchestrator.tracking.base import artifact_of
from orchestrator.tracking.weights_biases import WandbTracker

# What is to arrive arrives, also on a machine that is busy.
module.INIT_S, module.FINISH_S = 120, 120.0

def tracker(root, mode="auto", job_type="trial", name="fmnist/trials/000"):
    paths = RunPaths(Path(root))
    made = WandbTracker(WandbConfig(project="test", mode=mode, tags=("a",)), paths)
    made.start({"optimizer": {"lr": 0.5}}, name=name, group="fmnist", job_type=job_type)
    return made

root = sys.argv[1]
"""

RUN = (
    PRELUDE
    + """
first, last, state, mode = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
one = tracker(root, mode)
for step in range(first, last):
    one.log(step, {"train/loss": 1 / step, "val/accuracy": step / 100}, epoch=step / 10)
one.summary({"val/accuracy": 0.75})
one.finish(state)
"""
)


def run_id(root) -> str:
    return json.loads((root / "logs" / "wandb.json").read_text())["id"]


def events(root) -> list[str]:
    return [line["message"] for line in read_lines(RunPaths(root).events)]


def chunks(data: bytes):
    """The records of a LevelDB log, which W&B's own file is behind a header of 7 bytes."""
    block, header, place, whole = 32768, 7, 7, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        size = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        whole += data[place + header : place + header + size]
        place += header + size
        if kind in (1, 4):
            yield whole
            whole = b""


def records(root) -> list:
    """What was recorded in a run's newest own file, as W&B's messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = root.glob("logs/wandb/*run-*/*.wandb")
    newest = max(files, key=lambda file: file.stat().st_mtime)
    return [Record.FromString(one) for one in chunks(newest.read_bytes())]


def online(server) -> dict:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}


def test_a_run_and_its_restart_arrive(tmp_path, server, start, end):
    root = tmp_path / "000"
    end(start(RUN, root, 1, 4, "failed", "auto", **online(server)))
    (exit_code,) = [one.exit.exit_code for one in records(root) if one.HasField("exit")]
    assert exit_code == 1
    # The restart repeats step 3, as after a checkpoint at step 2.
    end(start(RUN, root, 3, 6, "done", "auto", **online(server)))
    seen = server.run(run_id(root))
    assert seen["name"] == "fmnist/trials/000"
    assert seen["state"] == "finished"
    assert seen["config"]["optimizer"] in ({"lr": 0.5}, {"value": {"lr": 0.5}})
    assert seen["summary"]["val/accuracy"] == 0.75
    assert seen["summary"]["state"] == "done"
    # W&B itself drops a step that it has; this server keeps it a second time.
    losses = set(server.history(run_id(root), "train/loss"))
    assert losses == {(step, 1 / step) for step in (1, 2, 3, 4, 5)}
    assert len(server.rows("SELECT 1 FROM runs WHERE run_id = ?", run_id(root))) == 1
    assert server.history(run_id(root), "epoch")[-1] == (5, pytest.approx(0.5))
    assert events(root) == []


LINKS = (
    PRELUDE
    + """
def model(name, content):
    folder = Path(root) / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    (folder / "model.json").write_text("{}")
    return RunPaths(folder)

trial = model("trial", "weights")
one = tracker(trial.root)
one.finish("done")
ensemble = RunPaths(Path(root) / "ensemble")
ensemble.root.mkdir()
(ensemble.root / "ensemble.json").write_text("{}")
two = tracker(ensemble.root, job_type="ensemble", name="fmnist/ensemble")
two.use(artifact_of(trial))
two.finish("done", [artifact_of(ensemble)])
"""
)


def test_models_and_ensembles_are_linked(tmp_path, server, start, end):
    end(start(LINKS, tmp_path, **online(server)))
    trial, ensemble = tmp_path / "trial", tmp_path / "ensemble"
    made = server.rows("SELECT run_id, name, artifact_type FROM artifacts")
    names = {run: name for run, name, kind in made if kind == "model"}
    assert names[run_id(trial)].startswith("model-trial-")
    assert any(run == run_id(ensemble) and kind == "ensemble" for run, _, kind in made)
    (run,) = [one.run for one in records(ensemble) if one.HasField("run")][:1]
    assert (run.run_group, run.job_type) == ("fmnist", "ensemble")
    config = server.run(run_id(ensemble))["config"]
    assert names[run_id(trial)] in json.dumps(config["inputs"])
    # An input is an artifact of the same content that no run made.
    log = (server.folder / "log").read_text()
    lines = re.findall(rf"createArtifact: run=(\w+), .*={names[run_id(trial)]}, (.*)", log)
    (made_by, content), (used_by, same_content) = lines
    assert (made_by, used_by) == (run_id(trial), "None")
    assert content == same_content
    assert events(trial) == []


def test_no_secret_and_no_command_line_is_kept(tmp_path, server, start, end):
    root = tmp_path / "000"
    end(start(RUN, root, 1, 4, "done", "auto", OTHER_SECRET="hunter2hunter2", **online(server)))
    kept = [file for file in root.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in kept)
    for file in kept:
        assert KEY.encode() not in file.read_bytes(), file
        assert b"hunter2" not in file.read_bytes(), file


def test_without_a_key_it_is_offline_and_asks_nothing(tmp_path, server, start, end):
    root = tmp_path / "000"
    # Sooner than W&B itself would give up.
    end(start(RUN, root, 1, 4, "done", "auto", WANDB_BASE_URL=server.url), timeout=300)
    assert len(list(root.glob("logs/wandb/offline-run-*/*.wandb"))) == 1
    assert server.rows("SELECT 1 FROM runs WHERE run_id = ?", run_id(root)) == []
    (message,) = events(root)
    assert "WANDB_API_KEY" in message
    assert "wandb sync" in message


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_server_that_is_not_there(tmp_path, start, end, mode):
    root = tmp_path / "000"
    settings = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    # Sooner than W&B itself would give up.
    end(start(RUN, root, 1, 4, "done", mode, **settings), timeout=300)
    (message,) = events(root)
    assert "can't be reached" in message
    losses = [one for one in records(root) if one.HasField("history")]
    assert len(losses) == 3, "kept for `wandb sync`"


MID_RUN = (
    PRELUDE
    + """
module.FINISH_S = 6.0
one = tracker(root)
for step in (1, 2):
    one.log(step, {"train/loss": 1.0}, epoch=0.0)
input()
slowest = 0.0
for step in range(3, 300):
    began = time.perf_counter()
    one.log(step, {"train/loss": 1.0}, epoch=0.0)
    slowest = max(slowest, time.perf_counter() - began)
began = time.perf_counter()
one.finish("done")
waited = time.perf_counter() - began
Path(root, "waited.json").write_text(json.dumps([slowest, waited]))
"""
)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_in_mid_run(tmp_path, own_server, start, end, fault):
    server, root = own_server, tmp_path / "000"
    process = start(MID_RUN, root, **online(server))
    deadline = time.monotonic() + 120
    while not server.rows("SELECT 1 FROM runs"):
        assert time.monotonic() < deadline and process.poll() is None, "the run never began"
        time.sleep(0.1)
    server.process.send_signal(fault)
    process.stdin.write("\n")
    process.stdin.flush()
    end(process)
    # The server never answers again, so who waited for it would wait as long as W&B has patience.
    slowest, waited = json.loads((root / "waited.json").read_text())
    assert slowest < 2
    assert waited < 20
    kept = [one for one in records(root) if one.HasField("history")]
    assert len(kept) == 299, "nothing is lost: `wandb sync` sends it later"


# --- the choice of a mode ------------------------------------------------------------------

SERVER = "http://127.0.0.1:9"


@pytest.fixture
def bare(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


def test_a_key_is_found_in_the_environment_or_the_netrc_file(bare, tmp_path):
    assert not module.find_key(SERVER)
    bare.setenv("WANDB_API_KEY", KEY)
    assert module.find_key(SERVER)
    bare.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
    assert module.find_key(SERVER)
    assert not module.find_key("https://elsewhere.example")
    (tmp_path / "netrc").write_text("not a netrc file {")
    assert not module.find_key(SERVER)


def test_the_mode_follows_file_then_environment(bare):
    assert module.choose_mode("disabled", SERVER) == ("disabled", "")
    assert module.choose_mode("offline", SERVER) == ("offline", "")
    bare.setenv("WANDB_API_KEY", KEY)
    bare.setenv("WANDB_MODE", "offline")
    assert module.choose_mode("auto", SERVER) == ("offline", "")
    mode, why = module.choose_mode("online", SERVER)
    assert mode == "offline"
    assert "can't be reached" in why
