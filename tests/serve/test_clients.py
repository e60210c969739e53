"""Clients that others wrote, against a real server: their numbers are those of `orch predict`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from orchestrator import cli
from orchestrator.config.serving import ServeConfig
from orchestrator.serve.control.table import VersionSpec
from tests.serve.live import Live, live_server
from tests.serve.serving import (
    LABELS,
    TEXT_LABELS,
    encode,
    make_ensemble,
    make_run,
    make_text_run,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 1, 12, 12), dtype=np.uint8)
SAYINGS = ("Free money, you!", "meet you tomorrow", "völlig neu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    members = [make_run(folder / f"m{n}", n) for n in range(2)]
    make_ensemble(folder / "shoes", members, [0.75, 0.25])
    make_text_run(folder / "mail")
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels[0]).save(folder / f"{number}.png")
    for number, text in enumerate(SAYINGS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def live(runs) -> Iterator[Live]:
    specs = [
        VersionSpec("shoes", "1", str(runs / "m1")),
        VersionSpec("shoes", "2", str(runs / "shoes")),
        VersionSpec("mail", "1", str(runs / "mail")),
    ]
    with live_server(specs, config=ServeConfig(executor="torch")) as server:
        yield server


@pytest.fixture(scope="module")
def client(live) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"{live.host}:{live.port}") as one:
        yield one


def predicted(runs: Path, name: str, kind: str, capsys: Any) -> np.ndarray:
    """What `orch predict` says of every file of a kind: float[B, classes]."""
    paths = sorted(map(str, runs.glob(f"*.{kind}")))
    capsys.readouterr()
    assert cli.run(["predict", str(runs / name), *paths, "--json"]) == 0
    return np.array([one["probabilities"] for one in json.loads(capsys.readouterr().out)["inputs"]])


def image_input(pixels: np.ndarray, binary: bool) -> triton.InferInput:
    kind = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}[str(pixels.dtype)]
    one = triton.InferInput("image", list(pixels.shape), kind)
    return one.set_data_from_numpy(pixels, binary_data=binary)


# --- tritonclient --------------------------------------------------------------------------


def test_triton_client_reads_metadata_and_health(client):
    assert client.is_server_live() and client.is_server_ready()
    server = client.get_server_metadata()
    assert server["name"] == "orch"
    assert server["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_repository",
        "parameters",
    ]
    assert client.is_model_ready("shoes") and client.is_model_ready("shoes", "1")
    assert not client.is_model_ready("shoes", "9") and not client.is_model_ready("boots")
    model = client.get_model_metadata("shoes", "2")
    assert model["versions"] == ["1", "2"] and model["platform"] == "orch_ensemble"
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 12, 12]}]
    mail = client.get_model_metadata("mail")
    assert mail["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert mail["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_triton_client_gets_the_numbers_of_orch_predict(
    client, runs, capsys, binary_in, binary_out, kind
):
    expected = predicted(runs, "shoes", "png", capsys)
    pixels = PIXELS if kind == "uint8" else (PIXELS / np.float32(255)).astype(np.float32)
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary_out)
        for name in ("label", "probabilities")
    ]
    answer = client.infer(
        "shoes", [image_input(pixels, binary_in)], outputs=wanted, request_id="seven"
    )
    found = answer.as_numpy("probabilities")
    assert found.dtype == np.float32 and np.abs(found - expected).max() <= 1e-5
    labels = [LABELS[k] for k in expected.argmax(1)]
    assert [str(one, "utf-8") if binary_out else one for one in answer.as_numpy("label")] == labels
    said = answer.get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("seven", "shoes", "2")
    assert said["parameters"] == {"members": 2, "members_total": 2, "late": False}
    assert [one["name"] for one in said["outputs"]] == ["label", "probabilities"]


def test_triton_client_sends_half_precision(client, runs, capsys):
    answer = client.infer("shoes", [image_input((PIXELS / 255).astype(np.float16), True)])
    expected = predicted(runs, "shoes", "png", capsys)
    assert np.abs(answer.as_numpy("probabilities") - expected).max() < 1e-3


def test_triton_client_chooses_a_version(client, runs, capsys):
    expected = predicted(runs, "m1", "png", capsys)
    for chosen in ({"model_version": "1"}, {"query_params": {"version": "1"}}):
        answer = client.infer("shoes", [image_input(PIXELS, True)], **chosen)
        assert answer.get_response()["model_version"] == "1"
        assert np.abs(answer.as_numpy("probabilities") - expected).max() <= 1e-5


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_client_compresses_both_ways(client, algorithm):
    pixels = np.repeat(PIXELS, 128, 0)
    plain, packed = (
        client.infer(
            "shoes",
            [image_input(pixels, True)],
            request_compression_algorithm=one,
            response_compression_algorithm=one,
        ).as_numpy("probabilities")
        for one in (None, algorithm)
    )
    assert plain.shape == (512, 3) and np.allclose(plain, packed, atol=1e-6, rtol=0)


def test_triton_client_asks_for_classes(client):
    image = image_input(PIXELS, True)
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    found = client.infer("shoes", [image], outputs=[wanted]).as_numpy("probabilities")
    rows = client.infer("shoes", [image]).as_numpy("probabilities")
    assert found.shape == (4, 2)
    for said, row in zip(found, rows, strict=True):
        order = np.argsort(-row)[:2]
        for one, k in zip(said, order, strict=True):
            value, index, label = one.decode().split(":")
            assert (int(index), label) == (k, LABELS[k])
            assert float(value) == pytest.approx(row[k], abs=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_sends_texts(client, runs, capsys, binary):
    texts = triton.InferInput("text", [len(SAYINGS)], "BYTES")
    texts.set_data_from_numpy(np.array([one.encode() for one in SAYINGS], object), binary)
    answer = client.infer("mail", [texts])
    expected = predicted(runs, "mail", "txt", capsys)
    assert np.abs(answer.as_numpy("probabilities") - expected).max() <= 1e-5
    assert [one.decode() for one in answer.as_numpy("label")] == [
        TEXT_LABELS[k] for k in expected.argmax(1)
    ]


def test_triton_client_is_told_why_it_is_refused(client):
    small = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(InferenceServerException, match=r"shape must be \[B, 1, 12, 12\]") as error:
        client.infer("shoes", [image_input(small, True)])
    assert error.value.status() == "400"
    with pytest.raises(InferenceServerException, match="did you mean 'shoes'") as error:
        client.infer("shoe", [image_input(PIXELS, True)])
    assert error.value.status() == "404"
    with pytest.raises(InferenceServerException, match="deadline passed") as error:
        client.infer("shoes", [image_input(PIXELS, True)], timeout=1)
    assert error.value.status() == "504"


def test_triton_client_asks_many_at_once(live):
    with triton.InferenceServerClient(f"{live.host}:{live.port}", concurrency=8) as many:
        calls = [many.async_infer("shoes", [image_input(PIXELS[:1], True)]) for _ in range(32)]
        rows = np.concatenate([call.get_result().as_numpy("probabilities") for call in calls])
    assert rows.shape == (32, 3) and np.abs(rows - rows[0]).max() < 1e-6


# --- curl ----------------------------------------------------------------------------------

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl(live: Live, path: str, *more: str) -> dict[str, Any]:
    # It waits for leave to send a large body a second only, and then sends it all the same.
    limits = ["--max-time", "60", "--expect100-timeout", "60"]
    command = ["curl", "-sS", *limits, *more, live.url + path]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def rows(answers: list[dict[str, Any]], labels: tuple[str, ...]) -> np.ndarray:
    listed = [
        {one["label"]: one["probability"] for one in answer["predictions"]} for answer in answers
    ]
    return np.array([[one[label] for label in labels] for one in listed])


@needs_curl
def test_curl_sends_an_image(live, runs, capsys):
    answer = curl(live, "/predict/shoes", "--data-binary", f"@{runs}/0.png")
    assert np.abs(rows([answer], LABELS) - predicted(runs, "shoes", "png", capsys)[:1]).max() < 1e-5
    assert list(answer) == [
        *("model", "version", "members", "members_total", "late", "ms", "predictions")
    ]
    assert (answer["model"], answer["version"]) == ("shoes", "2")
    assert (answer["members"], answer["members_total"], answer["late"]) == (2, 2, False)
    listed = [one["probability"] for one in answer["predictions"]]
    assert listed == sorted(listed, reverse=True)
    chosen = curl(live, "/predict/shoes?version=1&top=1", "--data-binary", f"@{runs}/0.png")
    assert chosen["version"] == "1" and len(chosen["predictions"]) == 1


@needs_curl
def test_curl_sends_a_form_of_one_and_of_several(live, runs, capsys):
    expected = predicted(runs, "shoes", "png", capsys)
    one = curl(live, "/predict/shoes", "-F", f"image=@{runs}/1.png")
    assert np.abs(rows([one], LABELS) - expected[1:2]).max() < 1e-5
    files = [part for n in range(4) for part in ("-F", f"image=@{runs}/{n}.png")]
    several = curl(live, "/predict/shoes", *files)
    assert np.abs(rows(several["answers"], LABELS) - expected).max() < 1e-5


@needs_curl
def test_curl_sends_texts(live, runs, capsys):
    expected = predicted(runs, "mail", "txt", capsys)
    plain = curl(live, "/predict/mail", "--data-binary", f"@{runs}/0.txt")
    assert np.abs(rows([plain], TEXT_LABELS) - expected[:1]).max() < 1e-5
    field = curl(live, "/predict/mail", "-F", f"text={SAYINGS[1]}")
    assert np.abs(rows([field], TEXT_LABELS) - expected[1:2]).max() < 1e-5
    head = ("-H", "Content-Type: application/json")
    several = curl(live, "/predict/mail", *head, "-d", json.dumps({"texts": SAYINGS}))
    assert np.abs(rows(several["answers"], TEXT_LABELS) - expected).max() < 1e-5
    single = curl(live, "/predict/mail", *head, "-d", json.dumps({"text": SAYINGS[2]}))
    assert np.abs(rows([single], TEXT_LABELS) - expected[2:]).max() < 1e-5


@needs_curl
def test_curl_sees_a_large_body_refused_before_it_is_sent(live, tmp_path):
    """curl waits for leave to send more than a megabyte, and gets the refusal instead."""
    (tmp_path / "large").write_bytes(bytes(40 * 2**20))
    answer = curl(live, "/predict/shoes", "--data-binary", f"@{tmp_path}/large")
    assert answer == {"error": "a request may have 33,554,432 bytes"}


# --- the same client, the same version -----------------------------------------------------


def test_a_client_names_itself_and_its_deadline(live):
    image = encode(Image.fromarray(PIXELS[0, 0]))
    headers = {"X-Orch-Client": "ada", "X-Orch-Deadline-Ms": "10000"}
    live.call(
        live.operator.set_rule("shoes", {"type": "weighted", "weights": {"1": 1.0, "2": 1.0}})
    )
    live.settle()
    try:
        seen = {
            live.client.post("/predict/shoes", content=image, headers=headers).json()["version"]
            for _ in range(16)
        }
        drawn = {
            live.client.post("/predict/shoes", content=image).json()["version"] for _ in range(64)
        }
    finally:
        live.call(live.operator.set_rule("shoes", {"type": "latest"}))
        live.settle()
    assert len(seen) == 1 and drawn == {"1", "2"}
    late = live.client.post("/predict/shoes", content=image, headers={"X-Orch-Deadline-Ms": "1e-6"})
    assert late.status_code == 504 and "error" in late.json()
