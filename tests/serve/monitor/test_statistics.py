"""What a run keeps of its data and answers, against the formulas and a real run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orchestrator import api
from orchestrator.config.load import config_from_mapping
from orchestrator.data.descriptors import image_descriptors, text_descriptors, token_descriptors
from orchestrator.data.memory import load_data
from orchestrator.data.text.tokenizer import SPECIAL, Tokenizer
from orchestrator.ensemble.combine import combine
from orchestrator.errors import RunFolderError
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.predictions import read_predictions
from orchestrator.run_folder.statistics import (
    BINS,
    CONFIDENCE,
    NAME,
    Calibration,
    Column,
    read_statistics,
    write_statistics,
)
from orchestrator.serve.monitor.past import past_of
from tests.serve.serving import make_ensemble, make_run


def test_descriptors_of_images_by_hand():
    image = np.zeros((1, 3, 2, 2), np.uint8)
    image[0, 0] = [[0, 255], [255, 0]]
    found = {name: float(values[0]) for name, values in image_descriptors(image).items()}
    assert found["brightness"] == pytest.approx(2 / 12)
    assert found["contrast"] == pytest.approx(np.sqrt(2 / 12 - (2 / 12) ** 2))
    # In the red channel each of the two differences across, and down, is 1; elsewhere 0.
    assert found["sharpness"] == pytest.approx(1 / 3)
    assert (found["red"], found["green"], found["blue"]) == pytest.approx((0.5, 0, 0))


def test_bytes_and_numbers_are_described_alike():
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 7), dtype=np.uint8)
    ours, theirs = image_descriptors(images), image_descriptors(images.astype(np.float32) / 255)
    assert list(ours) == ["brightness", "contrast", "sharpness"]
    for name in ours:
        assert np.allclose(ours[name], theirs[name], atol=1e-6)


def test_descriptors_of_texts_are_those_of_their_rows():
    tokenizer = Tokenizer("word", True, (*SPECIAL, "free", "money"))
    found = text_descriptors(tokenizer, ["free money now", "", "free free free free free"], 6)
    assert found["length"].tolist() == [5, 2, 6]
    assert found["unknown"].tolist() == pytest.approx([1 / 5, 0, 0])
    rows = np.array([[2, 4, 5, 1, 3, 0], [2, 3, 0, 0, 0, 0], [2, 4, 4, 4, 4, 3]])
    for name, values in token_descriptors(rows).items():
        assert np.array_equal(values, found[name])


def test_the_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False, True, True])
    found = Calibration.of(confidence, correct)
    # |0.95 − 0.75| of four answers and |0.55 − 1| of two.
    assert found.error == pytest.approx((4 * 0.2 + 2 * 0.45) / 6)
    assert found.accuracy == pytest.approx(5 / 6)
    # A confidence on a border belongs to the bin below it, as in (b/B, (b+1)/B].
    edges = Calibration.of(np.array([1 / BINS, 1.0]), np.array([True, True]))
    assert edges.count.nonzero()[0].tolist() == [0, BINS - 1]
    assert Calibration.of(np.array([]), np.array([], bool)).error is None


def test_a_column_keeps_quantiles():
    few = Column.of(np.array([3.0, 1.0, 2.0]))
    assert few.quantiles.tolist() == [1, 2, 3] and few.mean == 2
    many = Column.of(np.arange(10_001) / 10_000)
    assert len(many.quantiles) == 512
    assert np.allclose(many.quantiles, np.linspace(0, 1, 512), atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short runs on the same digits."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, seed: int):
        config = config_from_mapping(
            {
                "name": name,
                "seed": seed,
                "data": {"source": {"type": "digits"}, "split": {"val": 0.2, "seed": 0}},
                "model": {"type": "mlp", "hidden": [16]},
                "task": {"type": "classify", "loss": {"type": "cross_entropy"}},
                "optimizer": {"type": "adamw", "lr": 3e-3},
                "scale": {"cpus": 1, "gpus": 0},
                "train": {"for": "10 steps", "batch_size": 64, "precision": "fp32"},
                "evaluate": {"every": "10 steps", "monitor": "val/accuracy", "mode": "max"},
            }
        )
        return config, api.train(config, runs_dir=folder).root

    return [run("one", 0), run("two", 1)]


def test_a_run_keeps_what_its_held_out_data_looks_like(trained):
    config, root = trained[0]
    found = read_statistics(root)
    assert found is not None
    data = load_data(config.data)
    images = data.train.inputs["image"][data.ids["val"]]
    exact = image_descriptors(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert found.samples == len(images) and found.data_digest == data.info.digest
    for name, values in exact.items():
        assert found.columns[name].mean == pytest.approx(values.mean(), abs=1e-5)
        assert np.allclose(found.columns[name].quantiles, np.sort(values), atol=1e-5)
    answers = read_predictions(RunPaths(root).predictions("val"))
    probabilities = answers.probabilities()
    assert found.labels.tolist() == np.bincount(answers.labels, minlength=10).tolist()
    assert found.predicted.sum() == len(answers)
    assert np.allclose(
        found.columns[CONFIDENCE].quantiles, np.sort(probabilities.max(1)), atol=1e-5
    )
    assert (root / NAME).stat().st_size < 64 * 1024


def test_reading_gives_back_what_was_written(trained, tmp_path):
    found = read_statistics(trained[0][1])
    assert found is not None
    write_statistics(tmp_path, found)
    assert (tmp_path / NAME).read_bytes() == (trained[0][1] / NAME).read_bytes()


def test_an_ensemble_is_compared_with_its_own_answers(trained, tmp_path):
    (_, one), (_, two) = trained
    ensemble = make_ensemble(one.parent / "both", [one, two], [0.5, 0.5])
    found = past_of(ensemble)
    assert found is not None
    answers = [read_predictions(RunPaths(root).predictions("val")) for root in (one, two)]
    mean = combine(answers, [0.5, 0.5], "probabilities")
    assert found.predicted.tolist() == np.bincount(mean.argmax(1), minlength=10).tolist()
    assert found.columns[CONFIDENCE].mean == pytest.approx(mean.max(1).mean(), abs=1e-5)
    member = read_statistics(one)
    assert member is not None
    assert found.columns["contrast"].mean == member.columns["contrast"].mean


def test_old_and_damaged_runs_have_no_reference(tmp_path, caplog):
    root = make_run(tmp_path / "old")
    assert read_statistics(root) is None and past_of(root) is None
    assert past_of(make_ensemble(tmp_path / "e", [root], [1.0])) is None
    (root / NAME).write_text(json.dumps({"format": 1}))
    with pytest.raises(RunFolderError, match="damaged"):
        read_statistics(root)
    assert past_of(root) is None and "damaged" in caplog.text
