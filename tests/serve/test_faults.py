"""Faults under load: what is killed comes back, and clients that retry lose nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from orchestrator.run_folder.model_file import save_model
from orchestrator.run_folder.paths import RunPaths
from orchestrator.serve.tls import Certificate
from tests.serve.ray_server import QUICK, Load, RayServer, make_certificate, ray_server
from tests.serve.serving import LABELS, make_run, small_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow]
MODULE = '''
import time
import torch

class Hangs(torch.nn.Linear):
    """Hangs on an image whose pixels are all 31."""

    def forward(self, x):
        flat = (x - x[:, :, :1, :1]).abs().amax((1, 2, 3)) < 1e-6
        if (flat & ((x[:, 0, 0, 0] - 31 / 255).abs() < 1e-6)).any():
            time.sleep(1000)
        return super().forward(x.flatten(1))

class Slow(torch.nn.Linear):
    """Takes a tenth of a second, whatever the batch."""

    def forward(self, x):
        time.sleep(0.1)
        return super().forward(x.flatten(1))
'''


def make_own(runs: Path, kind: str) -> None:
    """A run whose network is a class of `MODULE`."""
    (runs / "sleepy.py").write_text(MODULE)
    arguments = {"in_features": 144, "out_features": len(LABELS)}
    section = {"type": "import", "target": f"sleepy:{kind}", "args": arguments}
    (runs / kind).mkdir()
    spec = small_spec(model=section, mean=(0.0,), std=(1.0,))
    save_model(RunPaths(runs / kind), torch.nn.Linear(144, len(LABELS)).state_dict(), spec)


def pixels(value: int = 1) -> dict[str, object]:
    tensor = {"name": "image", "shape": [1, 1, 12, 12], "datatype": "UINT8", "data": [value] * 144}
    return {"inputs": [tensor]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for n, name in enumerate(("hats", "caps")):
        make_run(folder / name, n)
    make_run(folder / "broken", 2)
    (folder / "broken" / "model.safetensors").write_bytes(b"\0" * 100)
    return folder


@pytest.fixture(scope="module")
def server(runs) -> Iterator[RayServer]:
    """Two replicas, and two gateways of which one waits, over HTTPS."""
    pair = Certificate(runs / "cert.pem", runs / "key.pem")
    make_certificate(pair)
    two = ("serve.replicas=2", "serve.standby=true")
    with ray_server(runs, "hats", *QUICK, *two, certificate=pair) as started:
        yield started


def test_a_rolling_swap_loses_nothing_and_a_bad_version_never_answers(server):
    with Load(server, "hats", pixels(), 8) as tally:
        bad = server.post("/v2/repository/models/hats/load", parameters={"target": "broken"})
        assert bad.status_code == 400 and "does not fit" in bad.json()["error"], bad.text
        loaded = server.post("/v2/repository/models/hats/load", parameters={"target": "caps"})
        assert loaded.json()["version"] == "2", loaded.text
        traffic = {"type": "weighted", "weights": {"2": 1}}
        changed = server.client.put("/v2/models/hats/traffic", json=traffic)
        assert changed.status_code == 200, changed.text
        gone = server.post("/v2/repository/models/hats/unload", parameters={"version": "1"})
        assert gone.status_code == 200, gone.text
        swapped = time.monotonic()
        time.sleep(1)
    assert not tally.lost and not tally.retried
    assert set(tally.versions) == {"1", "2"}
    assert {version for when, version, _ in tally.answered if when > swapped + 0.2} == {"2"}


def test_only_the_clients_port_speaks_http_to_others(server):
    assert server.url.startswith("https://")
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.url.replace("https", "http") + "/v2")


def kill(server: RayServer, *words: str) -> None:
    # Of two gateways, the one that answers.
    family = server.family(*words)
    (victim, *_) = [one for one in family if len(family) == 1 or listens(server, one)] or family
    victim.kill()
    victim.wait(10)


def listens(server: RayServer, process: psutil.Process) -> bool:
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr.port == server.client.base_url.port
        for one in process.net_connections("inet")
    )


def survive(server: RayServer, *words: str) -> None:
    """Kills a process under load: no request is lost, and answers come again within 10 s."""
    with Load(server, "hats", pixels(), 8) as tally:
        at = time.monotonic()
        kill(server, *words)
        time.sleep(15)
        gap = tally.longest_gap(at, time.monotonic())
    print(f"killed {words}: longest time without an answer {gap:.2f} s")
    assert not tally.lost, tally
    assert gap <= 10


@pytest.mark.parametrize(
    "words",
    [
        ("hats@", ":model"),
        ("orch:operator",),
        ("ServeController",),
        ("orch:gateway",),
    ],
    ids=lambda words: words[0],
)
def test_killed_under_load(server, words):
    survive(server, *words)
    # What is left can still be changed.
    traffic = {"type": "latest", "sticky": False}

    def changed() -> bool:
        try:
            answer = server.client.put("/v2/models/hats/traffic", json=traffic)
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    until(changed)


def test_learnt_traffic_survives_the_operator(server):
    loaded = server.post(
        "/v2/repository/models/hats/load", parameters={"target": "hats", "version": "a"}
    )
    assert loaded.status_code == 200, loaded.text
    rule = {"type": "bandit", "versions": ["a"]}
    assert server.client.put("/v2/models/hats/traffic", json=rule).status_code == 200
    for _ in range(10):
        server.post("/feedback/hats", version="a", reward=1)

    def state() -> dict[str, object]:
        return server.client.get("/v2/models/hats/traffic").json()["state"]

    learnt = {"posteriors": {"a": [11, 1]}}
    until(lambda: state() == learnt)
    time.sleep(1.5)  # the disk has it too
    kill(server, "orch:operator")
    for _ in range(5):
        server.post("/feedback/hats", version="a", reward=0)
    until(lambda: state() == {"posteriors": {"a": [11, 6]}})


def until(done: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_hung_forward_is_replaced(runs):
    make_own(runs, "Hangs")
    limits = "serve.limits={compute_seconds: 2}"
    with ray_server(runs, "Hangs", limits, *QUICK, PYTHONPATH=str(runs)) as server:
        path = "/v2/models/Hangs/infer"
        assert server.client.post(path, json=pixels()).status_code == 200
        (before,) = server.family("Hangs@1", ":model")
        hung = server.client.post(path, json=pixels(31))
        at = time.monotonic()
        assert hung.status_code == 504 and "more than 2 seconds" in hung.json()["error"]
        until(lambda: server.client.post(path, json=pixels()).status_code == 200)
        print(f"after a hung forward: answers again after {time.monotonic() - at:.1f} s")
        until(lambda: "a forward pass took more than 2 seconds" in "\n".join(server.output))
        (after,) = server.family("Hangs@1", ":model")
        assert after.pid != before.pid and time.monotonic() - at < 30


def test_replicas_follow_the_load(runs):
    make_own(runs, "Slow")
    scale = "serve.replicas={min: 1, max: 3, up_seconds: 1, down_seconds: 5}"
    with ray_server(runs, "Slow", scale, *QUICK, PYTHONPATH=str(runs)) as server:
        assert len(server.family("Slow@1", ":model")) == 1
        with Load(server, "Slow", pixels(), 48) as tally:
            at = time.monotonic()
            until(lambda: len(server.family("Slow@1", ":model")) == 3, 90)
            print(f"three replicas after {time.monotonic() - at:.0f} s of load")
        assert not tally.lost
        at = time.monotonic()
        until(lambda: len(server.family("Slow@1", ":model")) == 1, 90)
        print(f"one replica after {time.monotonic() - at:.0f} s without")
