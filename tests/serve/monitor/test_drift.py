"""Drift: the tests' numbers against scipy and the formulas, false alarms and real shifts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from orchestrator.config.serving import ServeConfig
from orchestrator.data.descriptors import image_descriptors
from orchestrator.run_folder.statistics import (
    CONFIDENCE,
    Statistics,
    make_statistics,
    write_statistics,
)
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.monitor.drift import LEVEL, PREDICTION, compare, worst
from orchestrator.serve.monitor.windows import WINDOW, Budget, Describer, Window, sample
from orchestrator.serve.predictor import load_predictor
from tests.serve.live import live_server
from tests.serve.serving import make_run

CLASSES = 10


def answers(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """float32[N, CLASSES]: probabilities that are mostly right."""
    logits = rng.normal(size=(len(labels), CLASSES)) + 4 * np.eye(CLASSES)[labels]
    exponents = np.exp(logits)
    return (exponents / exponents.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8[N, 1, 8, 8] and int64[N], in random order."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = np.clip(found.images * 15, 0, 255).astype(np.uint8)
    return images[order, None], found.target[order]


@pytest.fixture(scope="module")
def reference(digits) -> Statistics:
    """Of the first half of the digits."""
    images, labels = (part[:900] for part in digits)
    probabilities = answers(np.random.default_rng(1), labels)
    descriptors = image_descriptors(images)
    return make_statistics(descriptors, probabilities, labels, data_digest="d" * 64, split="val")


def window_of(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
    """Descriptors and counts of one window, drawn without repeats."""
    rows = rng.choice(len(images), min(WINDOW, len(images)), replace=False)
    probabilities = answers(rng, labels[rows])
    values = {**image_descriptors(images[rows]), CONFIDENCE: probabilities.max(1)}
    return values, np.bincount(probabilities.argmax(1), minlength=CLASSES)


def test_numbers_are_those_of_scipy_and_of_the_formula(reference, digits):
    images, labels = (part[900:] for part in digits)
    values, predicted = window_of(images // 2, labels, np.random.default_rng(2))
    found = {shift.name: shift for shift in compare(reference, values, predicted)}
    raw = {}
    for name, column in reference.columns.items():
        raw[name] = stats.ks_2samp(
            column.quantiles, values[name].round(6).astype(float), method="asymp"
        ).pvalue
        # The index over the reference's deciles, with half a sample more in each bin.
        edges = np.quantile(column.quantiles, np.linspace(0.1, 0.9, 9))
        p, q = (
            (np.histogram(one, [-np.inf, *edges, np.inf])[0] + 0.5) / (len(one) + 5)
            for one in (column.quantiles, values[name])
        )
        expected = ((q - p) * np.log(q / p)).sum()
        assert found[name].psi == pytest.approx(expected, rel=0.05, abs=0.02)
    table = np.array([reference.predicted, predicted])
    raw[PREDICTION] = stats.chi2_contingency(table, correction=False).pvalue
    # Benjamini and Hochberg: the k-th smallest of m times m/k, and none above a later one.
    names = sorted(raw, key=lambda name: raw[name])
    adjusted, last = {}, 1.0
    for place in range(len(names), 0, -1):
        last = min(last, raw[names[place - 1]] * len(names) / place)
        adjusted[names[place - 1]] = last
    for name, shift in found.items():
        assert shift.p == pytest.approx(adjusted[name], rel=1e-3), name


def test_without_a_shift_alarms_are_as_rare_as_stated(reference, digits):
    images, labels = (part[900:] for part in digits)
    rng = np.random.default_rng(3)
    windows = 300
    alarms = significant = 0
    for _ in range(windows):
        shifts = compare(reference, *window_of(images, labels, rng))
        alarms += worst(shifts) != "none"
        significant += any(shift.p < LEVEL for shift in shifts)
    # Three standard errors of a share of LEVEL above it; both, with and without the effect.
    most = windows * LEVEL + 3 * np.sqrt(windows * LEVEL * (1 - LEVEL))
    assert alarms <= significant <= most


@pytest.mark.slow  # half a minute of resampling; the one above is quick
def test_alarms_of_new_samples_of_one_distribution_are_as_rare():
    rng = np.random.default_rng(4)
    windows, alarms = 400, 0
    for number in range(windows):
        if number % 40 == 0:
            labels = rng.integers(0, CLASSES, 400)
            values = {f"d{n}": rng.gamma(2 + n, size=400) for n in range(4)}
            reference = make_statistics(
                values, answers(rng, labels), labels, data_digest="", split="val"
            )
        fresh = {f"d{n}": rng.gamma(2 + n, size=WINDOW) for n in range(4)}
        found = answers(rng, rng.integers(0, CLASSES, WINDOW))
        counts = np.bincount(found.argmax(1), minlength=CLASSES)
        alarms += worst(compare(reference, {**fresh, CONFIDENCE: found.max(1)}, counts)) != "none"
    assert alarms <= windows * LEVEL + 3 * np.sqrt(windows * LEVEL * (1 - LEVEL))


@pytest.mark.parametrize(
    ("what", "descriptor"),
    [("inverted", "brightness"), ("brighter", "contrast"), ("one class", PREDICTION)],
)
def test_real_shifts_are_found(reference, digits, what, descriptor):
    images, labels = (part[900:] for part in digits)
    if what == "inverted":
        images = 255 - images
    elif what == "brighter":
        images = np.clip(images * 1.3, 0, 255).astype(np.uint8)
    else:
        images, labels = images[labels == 3], labels[labels == 3]
    rng = np.random.default_rng(5)
    for _ in range(20):
        shifts = {
            shift.name: shift for shift in compare(reference, *window_of(images, labels, rng))
        }
        assert shifts[descriptor].state == "major"
        assert worst(list(shifts.values())) == "major"


def test_much_traffic_alone_is_no_alarm():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, CLASSES, 512)
    grid = stats.norm.ppf((np.arange(512) + 0.5) / 512)
    reference = make_statistics(
        {"x": grid}, answers(rng, labels), labels, data_digest="", split="val"
    )
    # A fifth of a deviation is certain with so many samples, and matters to nobody.
    (shift,) = compare(reference, {"x": rng.normal(0.22, 1, 200_000)})
    assert shift.p < LEVEL and shift.psi < 0.1 and shift.state == "none"


def test_rare_classes_are_put_together():
    labels = np.repeat(np.arange(1000), 2)
    probabilities = np.eye(1000, dtype=np.float32)[labels]
    reference = make_statistics({}, probabilities, labels, data_digest="", split="val")
    rng = np.random.default_rng(7)
    drawn = np.bincount(rng.integers(0, 1000, WINDOW), minlength=1000)
    (shift,) = compare(reference, {}, drawn)
    assert shift.state == "none" and len(shift.expected) > 10
    assert min(shift.expected) * WINDOW >= 5 * 0.8
    (shift,) = compare(reference, {}, np.bincount(rng.integers(0, 100, WINDOW), minlength=1000))
    assert shift.state == "major"


def test_values_that_never_change_are_no_shift():
    labels = np.arange(40) % CLASSES
    probabilities = answers(np.random.default_rng(8), labels)
    reference = make_statistics(
        {"unknown": np.zeros(40)}, probabilities, labels, data_digest="", split="val"
    )
    (shift,) = compare(reference, {"unknown": np.zeros(100)})
    assert shift.p == 1 and shift.psi < 0.01 and shift.state == "none"
    assert compare(reference, {}) == [] and worst([]) == "none"


# --- windows ---------------------------------------------------------------------------------


def test_a_window_is_judged_once_and_then_forgotten(reference, digits):
    images, labels = (part[900:] for part in digits)
    rng = np.random.default_rng(9)
    window = Window(reference)
    for start in range(0, 3 * WINDOW, 8):
        rows = slice(start, start + 8)
        window.add(image_descriptors(images[rows]), answers(rng, labels[rows]))
        assert window.samples < WINDOW
    assert window.windows == 3 and window.alarms == 0
    assert window.verdict is not None and window.verdict.samples == WINDOW
    for start in range(0, WINDOW, 8):
        rows = slice(start, start + 8)
        window.add(image_descriptors(255 - images[rows]), answers(rng, labels[rows]))
    assert window.verdict.state == "major" and window.alarms == 1


def test_watching_has_a_budget(monkeypatch):
    now = 100.0
    monkeypatch.setattr(
        "orchestrator.serve.monitor.windows.time", SimpleNamespace(monotonic=lambda: now)
    )
    budget = Budget()
    # A burst of 64 samples, eight of a request, and then what time gives back: 32 a second.
    assert [budget.take(1000) for _ in range(100)] == [8] * 8 + [0] * 92
    now += 0.125
    assert [budget.take(1000) for _ in range(2)] == [4, 0]
    now += 60
    assert sum(budget.take(1000) for _ in range(100)) == 64


def test_samples_are_described_in_another_thread(reference, digits):
    images, labels = (part[900:] for part in digits)
    describer, window = Describer(), Window(reference)
    probabilities = answers(np.random.default_rng(10), labels)
    one = sample(images[:100], probabilities[:100], 5)
    assert np.array_equal(one.inputs, images[[0, 24, 49, 74, 99]])
    assert not np.shares_memory(one.inputs, images)
    for _ in range(10):
        describer.put(window, reference, one)
    describer.wait()
    describer.close()
    assert window.samples == 50


# --- with a server ---------------------------------------------------------------------------


def test_a_server_tells_usual_from_unusual_images(tmp_path, digits):
    """Real requests: those of the reference's kind raise no alarm, inverted ones do."""
    images, labels = digits
    names = tuple(map(str, range(CLASSES)))
    roots = [
        make_run(
            tmp_path / name,
            shape=(1, 8, 8),
            label_names=names,
            outputs=CLASSES,
            model={"type": "mlp", "hidden": [8]},
        )
        for name in ("usual", "unusual")
    ]
    for root in roots:
        predictor = load_predictor(root)
        rows = predictor.predict(torch.from_numpy(images[:900]).float() / 255).numpy()
        found = make_statistics(
            image_descriptors(images[:900]), rows, labels[:900], data_digest="d", split="val"
        )
        write_statistics(root, found)
    specs = [VersionSpec(root.name, "1", str(root)) for root in roots]
    with live_server(specs, config=ServeConfig(executor="torch")) as live:
        monitor = live.app.state.monitor
        live.client.get("/status")  # the references are read once somebody asks
        for name, shown in (("usual", images[900:]), ("unusual", 255 - images[900:])):
            watch = monitor._versions[name, "1"]
            watch._budget.take = lambda wanted: wanted  # all are described, at once
            while watch.window is None:
                live.client.get("/status")
            for start in range(0, 2 * WINDOW, 64):
                body = tensor(shown[start : start + 64])
                answer = live.client.post(f"/v2/models/{name}/infer", json=body)
                assert answer.status_code == 200
        monitor._describer.wait()
        drift = {
            model["name"]: model["versions"][0]["drift"]
            for model in live.client.get("/status").json()["models"]
        }
        assert drift["usual"]["state"] == "none" and drift["usual"]["windows"] == 2
        assert drift["unusual"]["state"] == "major" and drift["unusual"]["alarms"] == 2
        brightness = next(s for s in drift["unusual"]["shifts"] if s["name"] == "brightness")
        assert brightness["state"] == "major" and brightness["p"] < LEVEL
        text = live.client.get("/metrics").text
        assert 'orch_drift_state{model="unusual",version="1"} 2.0' in text
        assert 'orch_drift_state{model="usual",version="1"} 0.0' in text
        assert 'orch_drift_psi{descriptor="brightness",model="unusual",version="1"}' in text


def tensor(pixels: np.ndarray) -> dict[str, object]:
    given = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8"}
    return {"inputs": [{**given, "data": pixels.ravel().tolist()}]}
