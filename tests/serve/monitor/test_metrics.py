"""What Prometheus reads, and `/status`, of a server with versions, shadows and a canary."""

from __future__ import annotations

import asyncio
import collections
import json
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.backend import Answer, Computed, Seen
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.monitor.metrics import RequestMetrics
from orchestrator.serve.monitor.recent import STAGES, Recent
from orchestrator.serve.monitor.trace import Trace
from orchestrator.serve.monitor.values import plain
from orchestrator.serve.monitor.versions import VersionWatch
from orchestrator.serve.monitor.windows import Describer
from tests.serve.live import Live, live_server, until
from tests.serve.serving import SHAPE, encode, make_run

PLAIN = ServeConfig(executor="torch")
PNG = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)))
TRAFFIC = {
    "type": "canary",
    "stable": "1",
    "canary": "2",
    "steps": [1.0],
    "requests_per_step": 1000,
    "shadows": ["3"],
}
SHADOW = {"model": "shoes", "outcome": "answered", "version": "3", "role": "shadow"}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    specs = [
        VersionSpec("shoes", version, str(make_run(folder / version, seed=int(version))))
        for version in ("1", "2", "3")
    ]
    config = ServeConfig.model_validate({"traffic": {"shoes": TRAFFIC}, "executor": "torch"})
    with live_server(specs, config=config) as server:
        for _ in range(6):
            assert server.client.post("/predict/shoes", content=PNG).status_code == 200
        assert server.client.post("/predict/shoes?version=1", content=PNG).status_code == 200
        for path in ("/predict/made-up", "/predict/shoes?version=made-up", "/made-up"):
            assert server.client.post(path, content=PNG).status_code == 404
        assert server.client.post("/predict/shoes", content=b"x").status_code == 400
        # Nobody waits for a shadow but who counts its answers.
        until(lambda: of(samples(server), "orch_version_requests_total", **SHADOW) is not None)
        yield server


def samples(live: Live) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = live.client.get("/metrics").text
    assert "made-up" not in text
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def of(found, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def test_every_version_is_counted_by_its_role(live):
    found = samples(live)
    common = {"model": "shoes", "outcome": "answered"}
    assert of(found, "orch_version_requests_total", version="2", role="canary", **common) == 6
    assert of(found, "orch_version_requests_total", version="1", role="answers", **common) == 1
    shadow = of(found, "orch_version_requests_total", **SHADOW)
    assert shadow is not None and 1 <= shadow <= 6
    for version, role in (("1", "answers"), ("2", "canary"), ("3", "shadow")):
        executor = live.link.table.models["shoes"].versions[version].started.executor
        labels = {"model": "shoes", "version": version, "role": role, "executor": executor}
        assert of(found, "orch_version_info", **labels) == 1
    for version, share in (("1", 0), ("2", 1), ("3", 0)):
        assert of(found, "orch_traffic_share", model="shoes", version=version) == share
        assert of(found, "orch_queue_samples", model="shoes", version=version) == 0


def test_every_stage_of_an_answer_is_timed(live):
    found = samples(live)
    labels = {"model": "shoes", "version": "2"}
    seconds = {}
    for stage in STAGES:
        assert of(found, "orch_stage_seconds_count", stage=stage, **labels) == 6
        seconds[stage] = of(found, "orch_stage_seconds_sum", stage=stage, **labels)
        assert seconds[stage] >= 0
    total = seconds.pop("total")
    assert 0 < sum(seconds.values()) <= total
    assert of(found, "orch_batch_samples_count", **labels) == 6
    # Nobody sends a shadow's request, so it is received and decoded by nobody.
    assert not of(found, "orch_stage_seconds_count", stage="receive", model="shoes", version="3")


def test_stages_are_what_lies_between_a_requests_times():
    """Head 2 s, body 3 s, decoded 3.5 s, computed 3.75 to 4.75 s, told of at 5 s."""
    card = ModelCard("shoes", SHAPE, ("bag", "boot"))
    answer = Answer(Computed(np.array([[0.25, 0.75]], np.float32)), "1", 0.25, 1.0, batch=3)
    trace = Trace("a", arrived=2.0, received=3.0)
    seen = Seen("shoes", "1", np.zeros((1, *SHAPE), np.uint8), answer, False, 3.5, trace=trace)
    stages = VersionWatch(card, Describer()).see(seen, now=5.0)
    expected = {"receive": 1.0, "decode": 0.5, "queue": 0.25, "compute": 1.0, "total": 3.0}
    assert dict(zip(STAGES, stages, strict=True)) == expected


def test_requests_are_counted_whoever_answered(live):
    found = samples(live)
    labels = {"route": "/predict/{name}", "model": "shoes"}
    assert of(found, "orch_requests_total", status="200", **labels) == 7
    assert of(found, "orch_requests_total", status="400", **labels) == 1
    assert of(found, "orch_requests_total", status="404", route="other", model="") >= 1


def test_the_status_is_json_of_the_same_numbers(live):
    status = live.client.get("/status").json()
    (model,) = status["models"]
    assert model["name"] == "shoes" and model["rule"] == "canary" and model["classes"] == 3
    assert model["http"] == {"2xx": 7, "4xx": 2}
    one, two, three = model["versions"]
    assert [v["role"] for v in (one, two, three)] == ["answers", "canary", "shadow"]
    assert (one["answered"], two["answered"], two["failed"]) == (1, 6, 0)
    assert two["share"] == 1 and two["executor"].startswith("torch")
    assert set(two["latency_ms"]) == set(STAGES)
    times = two["latency_ms"]["total"]
    assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert two["batch"] == {"mean": 1.0, "max": 1, "of": 6}
    assert two["drift"]["state"] == "no reference"
    assert 1 / 3 <= two["calibration"]["confidence"] <= 1
    assert sum(bar["answered"] for bar in two["chart"]) * 5 == pytest.approx(6)
    assert any("canary" in event["message"] for event in status["events"])


def test_an_answer_has_an_id_and_repeats_a_sound_one(live):
    made = live.client.post("/predict/shoes", content=PNG).headers["x-request-id"]
    assert len(made) == 32
    for given, kept in (("order-7", True), ("a b", False), ("x" * 200, False), ("<i>", False)):
        answer = live.client.get("/v2", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is kept


def test_labels_that_come_later_are_counted_once(tmp_path):
    spec = VersionSpec("shoes", "1", str(make_run(tmp_path / "a")))
    with live_server([spec], config=PLAIN) as live:

        def say(request: str, *labels: str) -> httpx.Response:
            given = {"request": request, "labels": list(labels)}
            return live.client.post("/labels/shoes", json=given)

        answer = live.client.post("/predict/shoes", content=PNG, headers={"X-Request-Id": "a"})
        best = answer.json()["predictions"]
        live.client.post("/predict/shoes", content=PNG, headers={"X-Request-Id": "b"})
        assert "no label 'nothing'" in say("a", "nothing").json()["error"]
        assert say("a", best[0]["label"], best[0]["label"]).status_code == 404
        assert say("c", best[0]["label"]).status_code == 404
        assert live.client.post("/labels/shoes", content=b"{").status_code == 400
        assert say("a", best[0]["label"]).json() == {"version": "1", "correct": [True]}
        assert say("a", best[0]["label"]).status_code == 404
        assert say("b", best[1]["label"]).json() == {"version": "1", "correct": [False]}
        found = samples(live)
        labels = {"model": "shoes", "version": "1"}
        assert of(found, "orch_labelled", **labels) == 2
        assert of(found, "orch_accuracy", **labels) == 0.5
        error = abs(2 * best[0]["probability"] - 1) / 2
        assert of(found, "orch_calibration_error", **labels) == pytest.approx(error, abs=1e-6)


def test_a_version_that_is_gone_has_no_series(tmp_path):
    specs = [VersionSpec("shoes", v, str(make_run(tmp_path / v))) for v in ("1", "2")]
    with live_server(specs, config=PLAIN) as live:
        live.client.post("/predict/shoes?version=1", content=PNG)
        assert 'version="1"' in live.client.get("/metrics").text
        live.call(live.operator.unload("shoes", "1"))
        live.client.get("/metrics")
        text = live.client.get("/metrics").text
        assert 'version="1"' not in text and 'version="2"' in text
        versions = live.client.get("/status").json()["models"][0]["versions"]
        assert [one["version"] for one in versions] == ["2"]


def test_percentiles_are_those_of_the_last_answers():
    recent = Recent()
    for number in range(3000):
        recent.add((0.0, 0.0, 0.0, 0.0, number / 1000), 1 + number % 2)
    found = recent.summary()
    kept = np.arange(3000 - 2048, 3000)
    for name, share in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert found["latency_ms"]["total"][name] == pytest.approx(np.percentile(kept, share))
    assert found["batch"] == {"mean": 1.5, "max": 2, "of": 2048}
    assert recent.answered == 3000


def test_what_is_sent_is_json():
    found = plain({"a": np.float32(0.5), "b": [float("nan"), np.int64(3)], "c": (float("inf"),)})
    assert found == {"a": 0.5, "b": [None, 3], "c": [None]}


def test_a_defect_is_counted_as_one_and_its_answer_has_the_id():
    async def defect(scope: Any, receive: Any, send: Any) -> None:
        raise MemoryError

    registry, statuses = CollectorRegistry(), collections.Counter()
    app = RequestMetrics(defect, registry, SimpleNamespace(cards={}), statuses)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    head = {"type": "http", "method": "GET", "path": "/", "headers": [(b"x-request-id", b"seven")]}
    with pytest.raises(MemoryError):  # which the HTTP server logs
        asyncio.run(app(head, None, send))
    assert sent[0]["status"] == 500 and (b"x-request-id", b"seven") in sent[0]["headers"]
    assert json.loads(sent[1]["body"]) == {"error": "the server failed; its log says why"}
    assert statuses == {("", 500): 1}
