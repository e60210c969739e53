"""The status page without a browser: its headers, its shell, its routes."""

from __future__ import annotations

import base64
import hashlib
import re

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.guards.keys import digest_key
from orchestrator.serve.predictor import load_predictor
from orchestrator.serve.routes.pages import page
from orchestrator.serve.routes.shared import GatewaySettings
from tests.serve.live import live_server
from tests.serve.serving import LABELS, SHAPE, encode, make_run, make_text_run

KEY = "k" * 24
GREY = np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)
PLAIN = ServeConfig(executor="torch")
PNG = encode(Image.fromarray(GREY))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def live(folder):
    specs = [
        VersionSpec("shoes", "1", str(make_run(folder / "shoes"))),
        VersionSpec("flat", "1", str(make_run(folder / "flat", model={"type": "mlp"}))),
        VersionSpec("mail", "1", str(make_text_run(folder / "mail"))),
    ]
    with live_server(specs, config=PLAIN) as server:
        yield server


def test_nothing_runs_in_the_page_but_what_we_wrote(live):
    answer = live.client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'" and policy["base-uri"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"
    assert "unsafe" not in str(policy)


def test_the_page_is_one_piece_without_data(live):
    text, _ = page()
    assert live.client.get("/").text == text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text and " src=" not in text and "@import" not in text
    assert " style=" not in text and not re.search(r"\son[a-z]+=", text)
    assert "innerHTML" not in text and "shoes" not in text
    for name in re.findall(r'<(?:input|select|textarea)[^>]* id="([^"]+)"', text):
        assert f'for="{name}"' in text, f"{name} has no label"


def test_a_key_is_asked_for_data_but_not_for_the_page(folder):
    specs = [VersionSpec("shoes", "1", str(make_run(folder / "guarded")))]
    settings = GatewaySettings(key_digests=(digest_key(KEY),))
    with live_server(specs, config=PLAIN, settings=settings) as live:
        assert live.client.get("/").status_code == 200
        for method, path in (("GET", "/status"), ("GET", "/metrics"), ("POST", "/explain/shoes")):
            assert live.client.request(method, path, content=PNG).status_code == 401
        key = {"X-API-Key": KEY}
        assert live.client.get("/status", headers=key).json()["models"][0]["name"] == "shoes"
        assert live.client.post("/explain/shoes", content=PNG, headers=key).status_code == 200


@pytest.mark.parametrize("query", ["", "?label=coat", "?label=boot&version=1"])
def test_an_explanation_is_the_predictors(live, folder, query):
    found = live.client.post(f"/explain/shoes{query}", content=PNG).json()
    predictor = load_predictor(folder / "shoes")
    pixels = torch.from_numpy(GREY)[None].float() / 255
    likeliest = LABELS[int(predictor.predict(pixels[None]).argmax())]
    asked = re.search(r"label=(\w+)", query)
    assert found["label"] == (asked[1] if asked else likeliest)
    size = found["height"], found["width"]
    assert (size, found["channels"], found["version"]) == (SHAPE[1:], 1, "1")
    heat = np.frombuffer(base64.b64decode(found["heat"]), np.uint8).reshape(size)
    expected = predictor.explain(pixels, LABELS.index(found["label"])).numpy() * 255
    assert np.abs(heat - expected).max() <= 0.5 + 1e-3
    seen = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(size)
    assert np.array_equal(seen, GREY)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("shoes?label=boots", PNG, 400, "did you mean 'boot'"),
        ("shoes?version=9", PNG, 404, "version"),
        ("none", PNG, 404, "shoes"),
        ("shoes", b"", 400, "no image"),
        ("shoes", b"text", 400, "PNG or JPEG"),
        ("flat", PNG, 400, "no map of places"),
        ("mail", b"free money", 400, "only images are explained"),
    ],
)
def test_what_can_not_be_explained_is_said(live, path, body, status, message):
    answer = live.client.post(f"/explain/{path}", content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_the_routes_are_documented(live):
    paths = live.client.get("/openapi.json").json()["paths"]
    assert {"/status", "/explain/{name}", "/metrics"} <= set(paths)
    assert "requestBody" in paths["/explain/{name}"]["post"]
