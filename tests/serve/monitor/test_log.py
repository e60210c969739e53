"""The request log: what it keeps, that training reads it, and that nothing stops the answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.config.data import Parquet
from orchestrator.config.serving import RequestLog, ServeConfig
from orchestrator.data.sources.parquet import load
from orchestrator.serve.backend import Answer, Computed, Seen
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.monitor.log import RequestLogger, Rotation
from orchestrator.serve.monitor.trace import Trace
from orchestrator.serve.routes.shared import GatewaySettings
from tests.serve.live import live_server
from tests.serve.serving import LABELS, SHAPE, encode, make_run, make_text_run

CARD = ModelCard("shoes", (3, 4, 5), LABELS)


def seen(pixels: np.ndarray, number: int = 0) -> Seen:
    rows = np.eye(3, dtype=np.float32)[np.arange(len(pixels)) % 3]
    answer = Answer(Computed(rows), "1")
    return Seen("shoes", "1", pixels, answer, False, 0.0, trace=Trace(f"request-{number}"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def test_training_reads_the_log_once_labels_are_filled_in(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, *CARD.shape), dtype=np.uint8)
    log = RequestLogger(RequestLog(folder=str(tmp_path), sample=1), Rotation(rows=4))
    log.put(seen(images[:5], 0), CARD)
    # Floats are kept as the bytes that they are of.
    log.put(seen(images[5:].astype(np.float32) / 255, 1), CARD)
    log.close()
    (one, two) = files(tmp_path)
    assert log.written == 7 and log.dropped == 0
    tables = [pq.read_table(path) for path in (one, two)]
    table = pa.concat_tables(sorted(tables, key=lambda t: t["request"][0].as_py()))
    assert table["label"].null_count == 7
    assert table["request"].to_pylist() == ["request-0"] * 5 + ["request-1"] * 2
    assert table["place"].to_pylist() == [0, 1, 2, 3, 4, 0, 1]
    assert table["prediction"].to_pylist() == [LABELS[k] for k in (0, 1, 2, 0, 1, 0, 1)]
    assert np.array(table["probabilities"].to_pylist()).shape == (7, 3)
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"

    labels = ["coat", "bag", "boot", "bag", "coat", "boot", "bag"]
    filled = table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels))
    (tmp_path / "filled").mkdir()
    pq.write_table(filled, tmp_path / "filled" / "a.parquet")
    shape = tuple(table["shape"][0].as_py())
    assert shape == (4, 5, 3)
    source = Parquet.model_validate(
        {"type": "parquet", "path": str(tmp_path / "filled"), "shape": shape}
    )
    found = load(source, tmp_path / "cache")
    assert found.label_names == ("bag", "boot", "coat")
    assert np.array_equal(found.train.inputs["image"], images.transpose(0, 2, 3, 1))
    assert [found.label_names[k] for k in found.train.targets["label"]] == labels


def test_the_folder_does_not_depend_on_where_a_gateway_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ServeConfig.model_validate({"log": {"folder": "kept"}})
    assert GatewaySettings.of(config).log.folder == str(tmp_path / "kept")
    assert GatewaySettings.of(ServeConfig()).log is None


def test_a_sample_of_the_requests_is_kept(tmp_path):
    log = RequestLogger(RequestLog(folder=str(tmp_path), sample=0.25))
    log._draw.seed(0)
    images = np.zeros((1, *CARD.shape), np.uint8)
    for number in range(400):
        log.put(seen(images, number), CARD)
    log.close()
    # Three standard errors of a quarter of 400.
    assert abs(log.written - 100) < 3 * np.sqrt(400 * 0.25 * 0.75)


def test_a_large_request_gives_a_few_rows(tmp_path):
    log = RequestLogger(RequestLog(folder=str(tmp_path), sample=1))
    log.put(seen(np.zeros((100, *CARD.shape), np.uint8)), CARD)
    log.close()
    assert log.written == 32


def test_a_folder_that_can_not_be_written_is_said_once_and_counted(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    log = RequestLogger(RequestLog(folder=str(tmp_path / "file"), sample=1), Rotation(rows=1))
    for number in range(3):
        log.put(seen(np.zeros((1, *CARD.shape), np.uint8), number), CARD)
    log.close()
    assert (log.written, log.dropped) == (0, 3)
    assert caplog.text.count("can't be written") == 1


def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.serve.monitor.log.threading.Thread.start", lambda one: None)
    log = RequestLogger(RequestLog(folder=str(tmp_path), sample=1))
    one = seen(np.zeros((1, *CARD.shape), np.uint8))
    for _ in range(1500):
        log.put(one, CARD)
    assert log.dropped == 1500 - 1024


def test_the_memory_of_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.serve.monitor.log.threading.Thread.start", lambda one: None)
    log = RequestLogger(RequestLog(folder=str(tmp_path), sample=1))
    many = seen(np.zeros((40, 3, 256, 256), np.uint8))
    for number in range(30):
        log.put(many, CARD)
        held = (number + 1) * 32 - log.dropped
        assert held * 3 * 256 * 256 <= 128 * 2**20
    assert log.dropped == 30 * 32 - (128 * 2**20 // (32 * 3 * 256 * 256)) * 32


_DIES = """
import os, sys, numpy as np
from tests.serve.monitor.test_log import CARD, seen
from orchestrator.config.serving import RequestLog
from orchestrator.serve.monitor.log import RequestLogger, Rotation
log = RequestLogger(RequestLog(folder=sys.argv[1], sample=1), Rotation(rows=50))
images = np.random.default_rng(0).integers(0, 256, (1, *CARD.shape), dtype=np.uint8)
number = 0
while log.written < 200:
    log.put(seen(images, number), CARD)
    number += 1
os._exit(9)
"""


def test_a_crash_leaves_only_whole_files(tmp_path):
    root = Path(__file__).parents[3]
    died = subprocess.run(
        [sys.executable, "-c", _DIES, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=600,
        check=False,
    )
    assert died.returncode == 9
    found = files(tmp_path)
    assert len(found) >= 4
    # Those beside are hidden, and no reader takes them for data.
    whole = [path for path in found if not path.name.startswith(".")]
    assert whole == found
    assert sum(len(pq.read_table(path)) for path in whole) >= 200


# --- with a server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A server that logged three images and a text, and its folder."""
    folder = tmp_path_factory.mktemp("logged")
    specs = [
        VersionSpec("shoes", "1", str(make_run(folder / "shoes"))),
        VersionSpec("mail", "1", str(make_text_run(folder / "mail"))),
    ]
    config = ServeConfig.model_validate(
        {"log": {"folder": str(folder / "log"), "sample": 1}, "executor": "torch"}
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *SHAPE[1:]), dtype=np.uint8)
    answers = []
    with live_server(specs, config=config) as live:
        for number, image in enumerate(images):
            answers.append(
                live.client.post(
                    "/predict/shoes",
                    content=encode(Image.fromarray(image)),
                    headers={"X-Request-Id": f"mine-{number}"},
                ).json()
            )
        text = {"content-type": "text/plain"}
        live.client.post("/predict/mail", content="free money", headers=text)
        live.client.post("/predict/shoes", content=b"no image")
    return folder / "log", images, answers


def test_a_server_logs_what_it_answered(logged):
    folder, images, answers = logged
    (file,) = files(folder / "shoes")
    table = pq.read_table(file)
    assert table["request"].to_pylist() == ["mine-0", "mine-1", "mine-2"]
    assert np.array_equal(np.array(table["image"].to_pylist()), images.reshape(3, -1))
    for row, answer in zip(table.to_pylist(), answers, strict=True):
        assert row["prediction"] == answer["predictions"][0]["label"]
        best = answer["predictions"][0]["probability"]
        assert max(row["probabilities"]) == pytest.approx(best, abs=1e-6)
    (file,) = files(folder / "mail")
    assert pq.read_table(file)["text"].to_pylist() == ["free money"]


def test_a_broken_log_stops_no_answer(tmp_path):
    (tmp_path / "log").write_text("in the way")
    spec = VersionSpec("shoes", "1", str(make_run(tmp_path / "shoes")))
    config = ServeConfig.model_validate(
        {"log": {"folder": str(tmp_path / "log"), "sample": 1}, "executor": "torch"}
    )
    png = encode(Image.fromarray(np.zeros(SHAPE[1:], np.uint8)))
    with live_server([spec], config=config) as live:
        for _ in range(5):
            assert live.client.post("/predict/shoes", content=png).status_code == 200
