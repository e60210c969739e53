"""The file of `orch serve --write-config`, deployed by Ray's own command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.serve.live import free_ports
from tests.serve.ray_server import QUICK
from tests.serve.serving import make_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_rays_own_command_serves_the_written_file(tmp_path: Path):
    runs, written = tmp_path / "runs", tmp_path / "deploy.yaml"
    make_run(runs / "hats", 0)
    make_run(runs / "caps", 1)
    port, dashboard = free_ports(2)
    traffic = 'serve.traffic={hats: {type: weighted, weights: {"1": 1, "2": 0}}}'
    write = [sys.executable, "-m", "orchestrator", "serve", "hats@1=hats", "hats@2=caps", traffic]
    options = ["--port", str(port), "--runs-dir", str(runs), "--write-config", str(written)]
    subprocess.run([*write, *QUICK, *options], check=True, timeout=300)
    tool = Path(sys.executable).parent
    head = ["start", "--head", "--num-cpus=8", "--port=0", f"--dashboard-port={dashboard}"]
    environment = os.environ | {"RAY_TMPDIR": "/tmp", "RAY_AUTH_MODE": "disabled"}
    with (tmp_path / "log").open("w") as log:
        ray = subprocess.Popen(
            [str(tool / "ray"), *head, "--include-dashboard=true", "--block"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            deploy = [str(tool / "serve"), "deploy", str(written), "--address", address]
            deadline = time.monotonic() + 120
            while subprocess.run(deploy, env=environment, stdout=log, stderr=log).returncode:
                assert time.monotonic() < deadline and ray.poll() is None
                time.sleep(2)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                _until_ready(client)
                versions = client.get("/v2/models/hats").json()["versions"]
                assert versions == ["1", "2"]
                tensor = {"name": "image", "shape": [1, 1, 12, 12], "datatype": "UINT8"}
                body = {"inputs": [tensor | {"data": [1] * 144}]}
                answer = client.post("/v2/models/hats/infer", json=body)
                assert answer.json()["model_version"] == "1"
        finally:
            ray.terminate()
            ray.wait(60)


def _until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            if client.get("/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(1)
