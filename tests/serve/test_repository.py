"""Changing what is served over HTTP, by the clients that exist; a real server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from orchestrator.config.serving import ServeConfig
from orchestrator.run_folder.paths import resolve_target
from orchestrator.run_folder.registry import Registry
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.guards.keys import digest_key
from orchestrator.serve.routes.shared import GatewaySettings
from tests.serve.live import Live, live_server, until
from tests.serve.serving import make_run

PLAIN = ServeConfig(executor="torch", max_batch=8)
KEY, ADMIN = "k" * 24, "a" * 24


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three runs, the second one registered, and ways out of the folder."""
    folder = tmp_path_factory.mktemp("all") / "runs"
    for n, name in enumerate(("hats", "caps", "other")):
        make_run(folder / name, n)
    make_run(folder / "wide", 3, shape=(1, 16, 16))
    make_run(folder.parent / "outside", 4)
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "broken").mkdir()
    (folder / "broken" / "model.json").write_text("{}")
    Registry(folder).register(resolve_target(folder / "caps", folder), "hats")
    return folder


@pytest.fixture
def live(runs) -> Iterator[Live]:
    settings = GatewaySettings(models_root=str(runs), open_control=True)
    with live_server(
        [VersionSpec("hats", "0", str(runs / "hats"))], config=PLAIN, settings=settings
    ) as server:
        yield server


@pytest.fixture
def client(live) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{live.port}") as client:
        yield client


def infer(client: triton.InferenceServerClient, version: str = "") -> str:
    tensor = triton.InferInput("image", [1, 1, 12, 12], "FP32")
    tensor.set_data_from_numpy(np.full((1, 1, 12, 12), 0.5, np.float32), binary_data=False)
    return client.infer("hats", [tensor], version).get_response()["model_version"]


def load(live: Live, name: str, **parameters: str) -> httpx.Response:
    return live.client.post(f"/v2/repository/models/{name}/load", json={"parameters": parameters})


def test_tritons_client_swaps_a_version(live, client):
    assert infer(client) == "0"
    assert client.get_model_repository_index() == [
        {"name": "hats", "version": "0", "state": "READY", "reason": ""},
        {"name": "hats", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"},
    ]
    client.load_model("hats")  # registry:hats, by its number there
    assert infer(client) == "1" and infer(client, "0") == "0"
    assert client.is_model_ready("hats", "1")
    client.load_model("hats", config=json.dumps({"target": "other", "version": "next"}))
    assert infer(client) == "next"
    states = {row["version"]: row["state"] for row in client.get_model_repository_index()}
    assert states == {"0": "READY", "1": "READY", "next": "READY"}
    client.unload_model("hats")
    assert not client.is_model_ready("hats")
    assert not [one for one in client.get_model_repository_index() if one["state"] == "READY"]


def test_a_run_is_loaded_by_its_name_once(live, client):
    client.load_model("other")
    client.load_model("other")
    assert client.get_model_metadata("other")["versions"] == ["1"]
    answer = load(live, "other", target="caps").json()
    assert answer == {"name": "other", "version": "2", "state": "READY"}


@pytest.mark.parametrize(
    ("name", "parameters", "status", "message"),
    [
        ("hats", {"target": "../outside"}, 400, "below the runs' folder"),
        ("hats", {"target": "/etc"}, 400, "below the runs' folder"),
        ("hats", {"target": "caps/../../outside"}, 400, "below the runs' folder"),
        ("hats", {"target": "caps\x00"}, 400, "below the runs' folder"),
        ("hats", {"target": ".hidden"}, 400, "below the runs' folder"),
        ("hats", {"target": "link"}, 400, "links are not followed"),
        ("hats", {"target": "registry:../hats"}, 404, "not registered"),
        ("hats", {"target": "registry:hats@9"}, 404, "has the versions 1 (none)"),
        ("hats", {"target": "nothing"}, 404, "not a run"),
        ("nothing", {}, 404, "not a run"),
        ("%2e%2e", {}, 400, "called by letters"),
        ("hats", {"target": "broken", "version": "2"}, 400, "damaged"),
        ("hats", {"target": "wide", "version": "2"}, 400, "share input shape"),
        ("hats", {"target": "other", "version": "0"}, 409, "another folder"),
        ("hats", {"version": "../x"}, 400, "version"),
        ("hats", {"file:1/model.py": "x"}, 400, "not permitted"),
        ("hats", {"config": "{"}, 400, "JSON"),
    ],
)
def test_a_bad_version_is_refused_and_the_old_one_answers(
    live, client, runs, name, parameters, status, message
):
    answer = load(live, name, **parameters)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]
    assert str(runs) not in answer.text  # where it lies is nobody's business
    assert infer(client) == "0"
    assert client.get_model_metadata("hats")["versions"] == ["0"]


def test_a_registered_model_that_was_changed_is_refused(live, runs, client):
    model = runs / "caps" / "model.safetensors"
    before = model.read_bytes()
    try:
        model.write_bytes(before[:-1] + b"\x01")
        answer = load(live, "hats", target="registry:hats@1")
        assert answer.status_code == 404 and "was changed since hats@1" in answer.json()["error"]
        model.unlink()
        assert "it is gone" in load(live, "hats", target="registry:hats@1").json()["error"]
    finally:
        model.write_bytes(before)
    assert infer(client) == "0"


# --- traffic and rewards ---------------------------------------------------------------------


def test_traffic_is_read_and_set(live, client):
    assert load(live, "hats", target="other", version="2").status_code == 200
    path = "/v2/models/hats/traffic"
    traffic = live.client.get(path).json()
    assert traffic["rule"]["type"] == "latest" and traffic["shares"] == {"0": 0, "2": 1}
    body = {"type": "weighted", "weights": {"0": 3, "2": 1}}
    changed = live.client.put(path, json=body).json()
    assert changed["shares"] == {"0": 0.75, "2": 0.25}
    assert changed["events"][-1]["message"] == "traffic is weighted now"
    assert live.client.get(path).json() == changed
    # A client keeps its version, and both get clients.
    chosen = {}
    pixels = {"name": "image", "shape": [1, 1, 12, 12], "datatype": "UINT8", "data": [1] * 144}
    for _ in range(2):
        for n in range(16):
            answer = live.client.post(
                "/v2/models/hats/infer",
                json={"inputs": [pixels]},
                headers={"X-Orch-Client": f"client-{n}"},
            )
            version = answer.json()["model_version"]
            assert chosen.setdefault(n, version) == version
    assert set(chosen.values()) == {"0", "2"}
    refused = live.client.post(
        "/v2/repository/models/hats/unload", json={"parameters": {"version": "2"}}
    )
    assert refused.status_code == 409 and "change the traffic first" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"type": "weights"}', "unknown traffic 'weights'"),
        (b'{"type": "weighted"}', "weights: Field required"),
        (b'{"type": "weighted", "weights": {"0": 0}}', "above 0"),
        (b'{"type": "weighted", "weights": {"7": 1}}', "load them first"),
        (b'{"type": "canary", "stable": "0", "canary": "0"}', "two versions"),
    ],
)
def test_senseless_traffic_is_refused(live, body, message):
    answer = live.client.put("/v2/models/hats/traffic", content=body)
    assert answer.status_code == 400 and message in answer.json()["error"], answer.text
    assert live.client.get("/v2/models/hats/traffic").json()["rule"]["type"] == "latest"


def test_rewards_reach_the_bandit(live):
    assert load(live, "hats", target="other", version="2").status_code == 200
    reward = {"version": "2", "reward": 1}
    early = live.client.post("/feedback/hats", json=reward)
    assert early.status_code == 409 and "learns nothing" in early.json()["error"]
    rule = {"type": "bandit", "versions": ["0", "2"]}
    assert live.client.put("/v2/models/hats/traffic", json=rule).status_code == 200
    for _ in range(30):
        assert live.client.post("/feedback/hats", json=reward).status_code == 202
        live.client.post("/feedback/hats", json={"version": "0", "reward": 0})
    for wrong, status in [
        ({"version": "2", "reward": 1.5}, 400),
        ({"version": "2"}, 400),
        ({"version": "9", "reward": 1}, 404),
    ]:
        assert live.client.post("/feedback/hats", json=wrong).status_code == status
    assert live.client.post("/feedback/none", json=reward).status_code == 404

    # Reports may come in between: what counts is that every reward arrives, once.
    def learnt() -> bool:
        state = live.client.get("/v2/models/hats/traffic").json()["state"]
        return state == {"posteriors": {"0": [1, 31], "2": [31, 1]}}

    until(learnt)
    assert live.dispatcher.shares("hats")["2"] > 0.99


# --- who may -------------------------------------------------------------------------------


def statuses(live: Live, headers: dict[str, str]) -> set[int]:
    ask = live.client.request
    return {
        ask("POST", "/v2/repository/index", headers=headers).status_code,
        ask("POST", "/v2/repository/models/none/load", headers=headers).status_code,
        ask("POST", "/v2/repository/models/none/unload", headers=headers).status_code,
        ask("PUT", "/v2/models/hats/traffic", headers=headers, content=b"{").status_code,
    }


def test_changes_are_off_unless_the_server_allows_them(runs):
    with live_server([VersionSpec("hats", "1", str(runs / "hats"))], config=PLAIN) as live:
        assert statuses(live, {}) == {403}
        assert "--admin-key-file" in live.client.post("/v2/repository/index").json()["error"]
        assert live.client.get("/v2/models/hats/traffic").status_code == 200


def test_an_admin_key_is_needed_where_there_is_one(runs):
    settings = GatewaySettings(
        key_digests=(digest_key(KEY),),
        admin_digests=(digest_key("b" * 24), digest_key(ADMIN)),
        models_root=str(runs),
        open_control=True,
    )
    with live_server(
        [VersionSpec("hats", "1", str(runs / "hats"))], config=PLAIN, settings=settings
    ) as live:
        assert statuses(live, {}) == {401}
        assert statuses(live, {"X-API-Key": KEY}) == {403}
        assert statuses(live, {"Authorization": f"Bearer {KEY}"}) == {403}
        for headers in ({"X-API-Key": ADMIN}, {"Authorization": f"Bearer {ADMIN}"}):
            assert statuses(live, headers) == {200, 400, 404}
            assert live.client.get("/v2/models/hats", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost:8000"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Host": "evil.example:8000"}, False),
    ],
)
def test_web_pages_of_others_change_nothing(live, headers, allowed):
    answer = live.client.post("/v2/repository/index", headers=headers)
    assert answer.status_code == (200 if allowed else 403)
