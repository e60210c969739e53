"""One real server for the whole file: `orch serve` and its replicas, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from orchestrator.files import write_json
from orchestrator.serve.predictor import load_predictor
from tests.serve.live import free_ports
from tests.serve.ray_server import QUICK
from tests.serve.serving import LABELS, encode, make_ensemble, make_run

pytestmark = pytest.mark.ray
KEY = "0123456789abcdef0123"


@dataclass
class Server:
    process: subprocess.Popen[str]
    client: httpx.Client
    port: int
    runs: Path
    output: list[str]

    def family(self) -> list[psutil.Process]:
        """The server's processes: by its environment, which no other server shares."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("ORCH_TEST_SERVER") == str(self.runs):
                    found.append(process)
            except psutil.Error:
                continue
        return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


def launch(runs: Path, port: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "orchestrator", "serve", "shoes", "hats", *QUICK, *more),
            *("--port", str(port), "--runs-dir", str(runs)),
        ],
        env=os.environ | {"ORCH_TEST_SERVER": str(runs), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A sweep with ensemble and student, and a run."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = folder / "shoes"
    members = [make_run(sweep / f"m{n}", n) for n in range(2)]
    make_ensemble(sweep / "ensemble", members, [0.75, 0.25])
    make_run(sweep / "student", 5)
    write_json(sweep / "sweep.json", {"format": 1})
    make_run(folder / "hats", 6)
    (folder / "keys").write_text(KEY)
    return folder


@pytest.fixture(scope="module")
def server(runs) -> Iterator[Server]:
    (port,) = free_ports(1)
    process = launch(runs, port, "--api-key-file", str(runs / "keys"))
    output: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line.rstrip())
        if "READY" in line:
            break
    else:
        pytest.fail("the server ended: " + "\n".join(output))
    headers = {"X-API-Key": KEY}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=180) as client:
        yield Server(process, client, port, runs, output)
    process.kill()
    process.wait()


def infer(server: Server, name: str, pixels: np.ndarray) -> np.ndarray:
    tensor = {
        "name": "image",
        "shape": list(pixels.shape),
        "datatype": "FP32" if pixels.dtype == np.float32 else "UINT8",
        "data": pixels.ravel().tolist(),
    }
    answer = server.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    return np.reshape(output["data"], output["shape"])


FOLDERS = {"shoes": "shoes/ensemble", "shoes-student": "shoes/student", "hats": "hats"}


def test_it_says_what_it_serves_and_how_to_ask(server):
    text = "\n".join(server.output)
    for name in FOLDERS:
        assert f"http://127.0.0.1:{server.port}/predict/{name}" in text
    assert "curl -H 'X-API-Key: …' --data-binary @image.png" in server.output[-1]


@pytest.mark.parametrize("name", FOLDERS)
def test_numbers_are_the_predictors(server, name):
    pixels = np.random.default_rng(0).random((70, 1, 12, 12), dtype=np.float32)
    expected = load_predictor(server.runs / FOLDERS[name]).predict(torch.from_numpy(pixels))
    assert np.allclose(infer(server, name, pixels), expected.numpy(), atol=1e-5, rtol=0)


def test_many_at_once_get_their_own_answers(server):
    images = np.random.default_rng(1).integers(0, 256, (60, 1, 12, 12), dtype=np.uint8)
    floats = torch.from_numpy(images.astype(np.float32) / 255)
    expected = load_predictor(server.runs / FOLDERS["shoes"]).predict(floats).numpy()
    bad = {7, 31}

    async def ask_all() -> list[httpx.Response]:
        headers = {"X-API-Key": KEY}
        url = f"http://127.0.0.1:{server.port}/predict/shoes"
        async with httpx.AsyncClient(headers=headers, timeout=180) as client:
            files = [encode(Image.fromarray(image[0])) for image in images]
            bodies = [b"no image" if n in bad else file for n, file in enumerate(files)]
            return await asyncio.gather(*(client.post(url, content=body) for body in bodies))

    for n, answer in enumerate(asyncio.run(ask_all())):
        if n in bad:
            assert answer.status_code == 400
            continue
        given = {one["label"]: one["probability"] for one in answer.json()["predictions"]}
        wanted = dict(zip(LABELS, expected[n].tolist(), strict=True))
        assert given == pytest.approx(wanted, abs=1e-5)


def test_the_key_is_asked_for(server):
    url = f"http://127.0.0.1:{server.port}/v2"
    assert httpx.get(url, timeout=180).status_code == 401
    assert httpx.get(f"{url}/health/ready", timeout=180).status_code == 200


@pytest.mark.parametrize("name", FOLDERS)
def test_explanations_come_from_the_replicas(server, name):
    grey = np.random.default_rng(2).integers(0, 256, (12, 12), dtype=np.uint8)
    png = encode(Image.fromarray(grey))
    found = server.client.post(f"/explain/{name}?label={LABELS[1]}", content=png).json()
    heat = np.frombuffer(base64.b64decode(found["heat"]), np.uint8).reshape(12, 12)
    pixels = torch.from_numpy(grey.astype(np.float32) / 255)[None]
    expected = load_predictor(server.runs / FOLDERS[name]).explain(pixels, 1).numpy() * 255
    assert np.abs(heat - expected).max() < 1
    models = {one["name"]: one for one in server.client.get("/status").json()["models"]}
    (version,) = models[name]["versions"]
    assert version["answered"] >= 1 and version["executor"] and version["share"] == 1


def test_refusals_are_answers(server):
    unknown = server.client.get("/v2/models/boots")
    assert unknown.status_code == 404 and "shoes" in unknown.json()["error"]
    large = server.client.post("/predict/shoes", content=bytes(33 * 2**20))
    assert large.status_code == 413
    assert 'orch_requests_total{model="shoes"' in server.client.get("/metrics").text
    rule = {"type": "weighted", "weights": {"1": 1, "7": 2}}
    wrong = server.client.put("/v2/models/hats/traffic", json=rule)
    assert wrong.status_code in (400, 403), wrong.text
    unload = server.client.post("/v2/repository/models/boots/unload")
    assert unload.status_code in (400, 403, 404), unload.text
    # What was refused is on nobody's terminal (see the last test), and no probe counts as refused.
    assert "5xx" not in server.client.get("/status").json()["server"]["refused"]


def test_nothing_speaks_http_to_other_machines(server):
    """Ray's agents, which take jobs, and its metrics neither; its gRPC ports ask for a token."""
    open_to_all = []
    for process in server.family():
        title = " ".join(process.cmdline())[:200]
        for one in process.net_connections("inet"):
            if one.status != psutil.CONN_LISTEN or one.laddr.ip in ("127.0.0.1", "::1"):
                continue
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{one.laddr.port}/", timeout=2)
                open_to_all.append((one.laddr, title))
    assert not open_to_all


def test_a_port_in_use_is_named_before_anything_starts(server):
    second = launch(server.runs, server.port)
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 2
    starting, error = out.splitlines()
    assert starting.startswith("starting ")
    assert f"port {server.port}" in error and "--port" in error


def answers(server: Server, name: str) -> bool:
    """Whether a model is there. Without a gateway connections are dropped or refused."""
    tensor = {"name": "image", "shape": [1, 1, 12, 12], "datatype": "UINT8", "data": [1] * 144}
    with contextlib.suppress(httpx.TransportError):
        if server.client.get(f"/v2/models/{name}/ready").status_code == 200:
            # One that has just died is found out by the first request to it.
            asked = server.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
            assert asked.status_code in (200, 503), asked.text
            return asked.status_code == 200
    return False


@pytest.mark.parametrize("part", ["hats@1:model", "orch:gateway", "orch:operator"])
def test_a_killed_replica_comes_back(server, part):
    (victim,) = [p for p in server.family() if f":{part}" in " ".join(p.cmdline())]
    pixels = np.random.default_rng(2).random((1, 1, 12, 12), dtype=np.float32)
    before = infer(server, "hats", pixels)
    victim.kill()
    victim.wait(timeout=180)
    deadline = time.monotonic() + 200
    while not answers(server, "hats"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert np.allclose(infer(server, "hats", pixels), before, atol=1e-6)


def test_ctrl_c_leaves_nothing(server):
    """The last test: it ends the server."""
    assert len(server.family()) > 5
    os.kill(server.process.pid, signal.SIGINT)
    out, _ = server.process.communicate(timeout=300)
    assert server.process.returncode == 0, out
    assert "Traceback" not in out and "graceful_shutdown" not in out
    deadline = time.monotonic() + 60
    while left := server.family():
        assert time.monotonic() < deadline, [" ".join(one.cmdline()) for one in left]
        time.sleep(0.1)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/v2")


@pytest.mark.slow
def test_a_stop_during_the_start_leaves_nothing(runs):
    (port,) = free_ports(1)
    process = launch(runs, port)
    server = Server(process, httpx.Client(), port, runs, [])
    deadline = time.monotonic() + 60
    while not any("raylet" in one.name() for one in server.family()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 130 and "Traceback" not in out, out
    deadline = time.monotonic() + 10
    while left := server.family():
        assert time.monotonic() < deadline, [" ".join(one.cmdline()) for one in left]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_server_leaves_nothing(runs):
    """What Ctrl-C has no part in."""
    (port,) = free_ports(1)
    process = launch(runs, port)
    assert process.stdout is not None
    assert any("READY" in line for line in process.stdout)
    server = Server(process, httpx.Client(), port, runs, [])
    assert len(server.family()) > 5
    process.kill()
    process.wait()
    deadline = time.monotonic() + 40
    while left := server.family():
        assert time.monotonic() < deadline, [" ".join(one.cmdline()) for one in left]
        time.sleep(0.2)
