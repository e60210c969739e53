from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.errors import ResourceError, UserError
from orchestrator.serve.backend import Computed, Inputs
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.compute import local_backend
from orchestrator.serve.executors.base import PlainExecutor
from orchestrator.serve.gateway import create_app
from orchestrator.serve.guards.keys import digest_key, read_api_keys
from orchestrator.serve.predictor import Predictor, load_predictor
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.server import check_host, check_port
from tests.serve.serving import LABELS, encode, make_run

KEY = "k" * 24
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return load_predictor(make_run(tmp_path_factory.mktemp("runs") / "shoes"))


def client_of(app: Any) -> Ask:
    """Asks the application in this process over real ASGI messages."""

    async def asked(method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return lambda *args, **options: asyncio.run(_run(asked(*args, **options)))


async def _run(call: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    return await call


@pytest.fixture(scope="module")
def ask(predictor) -> Ask:
    settings = GatewaySettings(max_body=20_000)
    return client_of(create_app(local_backend([PlainExecutor(predictor, 32)]), settings))


@pytest.fixture
def png(grey) -> bytes:
    return encode(Image.fromarray(grey))


def tensor(pixels: np.ndarray, datatype: str) -> dict[str, Any]:
    return {
        "id": "7",
        "inputs": [
            {
                "name": "image",
                "shape": list(pixels.shape),
                "datatype": datatype,
                "data": pixels.ravel().tolist(),
            }
        ],
    }


def test_metadata_and_health(ask):
    assert ask("GET", "/v2").json()["name"] == "orch"
    assert ask("GET", "/v2/health/live").json() == {"live": True}
    assert ask("GET", "/v2/health/ready").json() == {"ready": True}
    model = ask("GET", "/v2/models/shoes").json()
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 12, 12]}]
    assert model["outputs"][0]["shape"] == [-1, 3]
    assert model["parameters"]["labels"] == list(LABELS)
    assert ask("GET", "/v2/models/shoes/versions/1").json() == model
    assert ask("GET", "/v2/models/shoes/ready").json() == {"name": "shoes", "ready": True}
    assert ask("GET", "/v2/models/shoes/versions/1/ready").status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/shoes/infer", "/v2/models/shoes/versions/1/infer"])
def test_infer_equals_the_predictor(ask, predictor, path):
    pixels = np.random.default_rng(0).random((4, 1, 12, 12), dtype=np.float32)
    answer = ask("POST", path, json=tensor(pixels, "FP32")).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("shoes", "1", "7")
    probabilities, labels = answer["outputs"]
    expected = predictor.predict(torch.from_numpy(pixels)).numpy()
    assert probabilities["shape"] == [4, 3]
    assert np.allclose(np.reshape(probabilities["data"], (4, 3)), expected, atol=1e-5, rtol=0)
    assert labels["data"] == [LABELS[k] for k in expected.argmax(1)]


def test_bytes_and_an_image_file_give_the_same(ask, grey, png):
    answer = ask("POST", "/v2/models/shoes/infer", json=tensor(grey[None, None], "UINT8")).json()
    image = ask("POST", "/predict/shoes", content=png).json()
    listed = {one["label"]: one["probability"] for one in image["predictions"]}
    given = dict(zip(LABELS, answer["outputs"][0]["data"], strict=True))
    assert listed == pytest.approx(given, abs=1e-5)
    assert image["predictions"][0]["probability"] == max(listed.values())
    assert image["model"] == "shoes" and image["ms"] > 0


def test_a_form_and_top(ask, png):
    raw = ask("POST", "/predict/shoes?top=1", content=png).json()["predictions"]
    form = ask("POST", "/predict/shoes?top=1", files={"image": ("a.txt", png)}).json()
    assert form["predictions"] == raw and len(raw) == 1


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "message"),
    [
        ("GET", "/v2/models/shoe", {}, 404, "did you mean 'shoes'"),
        ("GET", "/v2/models/zzz/ready", {}, 404, "choose one of: shoes"),
        ("GET", "/v2/models/shoes/versions/2", {}, 404, "unknown version of shoes '2'"),
        ("POST", "/predict/zzz", {"content": b"x"}, 404, "shoes"),
        ("POST", "/v2/models/zzz/infer", {"json": {}}, 404, "shoes"),
        ("GET", "/nothing", {}, 404, "Not Found"),
        ("GET", "/predict/shoes", {}, 405, "Not Allowed"),
        ("POST", "/predict/shoes", {"content": b""}, 400, "no image"),
        ("POST", "/predict/shoes", {"content": b"hello"}, 400, "PNG or JPEG"),
        ("POST", "/predict/shoes", {"data": {"a": "b"}, "files": {}}, 400, "PNG or JPEG"),
        ("POST", "/predict/shoes?top=0", {"content": b"x"}, 400, "top"),
        ("POST", "/predict/shoes", {"content": bytes(20_001)}, 413, "20,000 bytes"),
        ("POST", "/v2/models/shoes/infer", {"content": b"{"}, 400, "JSON"),
        ("POST", "/v2/models/shoes/infer", {"json": {"inputs": []}}, 400, "one input"),
    ],
)
def test_refusals_are_json_with_the_reason(ask, method, path, options, status, message):
    answer = ask(method, path, **options)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and message in answer.json()["error"]


def test_a_form_without_a_file(ask):
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = ask("POST", "/predict/shoes", content=body, headers=headers)
    assert answer.status_code == 400 and "no file" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/predict/shoes", "/v2/models/shoes/infer"])
def test_a_streamed_body_is_cut_at_the_limit(ask, path):
    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 1000
            yield bytes(1000)

    answer = ask("POST", path, content=endless())
    assert answer.status_code == 413 and "20,000 bytes" in answer.json()["error"]


def test_metrics_count_by_route_model_and_status(predictor, png):
    ask = client_of(create_app(local_backend([PlainExecutor(predictor, 32)]), GatewaySettings()))
    for _ in range(3):
        ask("POST", "/predict/shoes", content=png)
    ask("POST", "/predict/shoes", content=b"x")
    ask("GET", "/v2/models/made-up-by-a-client")
    ask("GET", "/made-up")
    text = ask("GET", "/metrics").text
    route = 'model="shoes",route="/predict/{name}"'
    assert f'orch_requests_total{{{route},status="200"}} 3.0' in text
    assert f'orch_requests_total{{{route},status="400"}} 1.0' in text
    assert f"orch_request_seconds_count{{{route}}} 4.0" in text
    assert 'model="",route="other",status="404"' in text
    assert "made-up" not in text


def test_pages(ask):
    assert ask("GET", "/docs").status_code == 200
    paths = ask("GET", "/openapi.json").json()["paths"]
    assert {"/predict/{name}", "/v2/models/{name}/infer", "/metrics"} <= set(paths)
    assert "requestBody" in paths["/predict/{name}"]["post"]


# --- ensembles and models that answer in part ----------------------------------------------


class Wayward:
    """Three members, of which two answered in time; no answer to a batch with a black image."""

    kind, max_batch = "wayward", 8
    card = ModelCard("shoes", (1, 12, 12), LABELS, members=3)

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        if any(not one.any() for one in inputs):
            raise RuntimeError("/home/us/secret.py fell over")
        return Computed(np.full((len(inputs), 3), 1 / 3, np.float32), members=2, late=True)


@pytest.fixture(scope="module")
def wayward() -> Ask:
    return client_of(create_app(local_backend([Wayward()]), GatewaySettings()))


def test_an_ensemble_that_was_late_says_so(wayward, png, grey):
    said = wayward("POST", "/predict/shoes", content=png).json()
    assert (said["members"], said["members_total"], said["late"]) == (2, 3, True)
    said = wayward("POST", "/v2/models/shoes/infer", json=tensor(grey[None, None], "UINT8")).json()
    assert said["parameters"] == {"members": 2, "members_total": 3, "late": True}


def test_one_image_that_the_model_fails_on_fails_alone(wayward, png, caplog):
    black = encode(Image.new("L", (12, 12)))
    files = [("image", (str(n), one)) for n, one in enumerate([png, black, png])]
    answer = wayward("POST", "/predict/shoes", files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["answers"]
    assert first == third and len(first["predictions"]) == 3
    assert second == {"error": "the model failed on this input (RuntimeError)"}
    assert "shoes failed on an input" in caplog.text and "Traceback" in caplog.text
    for given in (files[1:2], files[1:2] * 2):
        alone = wayward("POST", "/predict/shoes", files=given)
        assert alone.status_code == 500 and alone.json() == second


# --- keys, hosts, ports --------------------------------------------------------------------


@pytest.fixture
def guarded(predictor) -> Ask:
    settings = GatewaySettings(key_digests=(digest_key("other" * 5), digest_key(KEY)))
    return client_of(create_app(local_backend([PlainExecutor(predictor, 32)]), settings))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": KEY}, 200),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"X-API-Key": KEY + "x"}, 401),
        ({"X-API-Key": digest_key(KEY)}, 401),
        ({"X-API-Key": ""}, 401),
    ],
)
def test_keys(guarded, headers, status):
    for path in ("/v2", "/status", "/metrics", "/docs", "/v2/models/shoes"):
        answer = guarded("GET", path, headers=headers)
        assert answer.status_code == status, path
    if status == 401:
        assert "X-API-Key" in answer.json()["error"]
    assert guarded("POST", "/predict/shoes", headers=headers).status_code in (400, 401)


def test_probes_need_no_key(guarded):
    assert guarded("GET", "/v2/health/live").status_code == 200
    assert guarded("GET", "/v2/health/ready").status_code == 200


def test_key_files(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{KEY}\n")
    assert read_api_keys(path) == (digest_key(KEY),)
    for content, message in [("# none\n", "has no key"), ("short\n", "16 characters")]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_api_keys(path)
    with pytest.raises(UserError, match="can't be read"):
        read_api_keys(tmp_path / "missing")


def test_other_machines_need_keys_or_a_word():
    with pytest.raises(UserError, match="--api-key-file"):
        check_host("0.0.0.0", (), insecure=False)
    check_host("0.0.0.0", ("digest",), insecure=False)
    check_host("0.0.0.0", (), insecure=True)
    check_host("127.0.0.1", (), insecure=False)


def test_a_taken_port_is_named():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port {port} .*--port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
