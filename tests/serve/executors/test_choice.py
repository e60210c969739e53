"""From a folder to an executor: the same numbers, chosen by measurement, kept, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import UserError
from orchestrator.serve.executors import measure
from orchestrator.serve.executors.choose import powers_of_two
from orchestrator.serve.executors.decision import NAME
from orchestrator.serve.executors.load import load_executor, prepare
from orchestrator.serve.executors.measure import best_batch, duel, throughput, times_faster
from orchestrator.serve.executors.samples import SAMPLES, sample_inputs, take
from orchestrator.serve.predictor import load_predictor
from tests.serve.serving import MODEL, SHAPE, make_ensemble, make_run, small_spec

WEIGHTS = [0.5, 0.3, 0.2]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (11, *SHAPE), dtype=np.uint8)


@pytest.fixture
def ensemble(tmp_path) -> Path:
    # Rates differ between trials of a sweep, and mean nothing to a trained network.
    runs = [
        make_run(tmp_path / f"m{seed}", seed, model=MODEL | {"dropout": 0.1 * seed})
        for seed in range(3)
    ]
    return make_ensemble(tmp_path / "e", runs, WEIGHTS)


def expected(root: Path, pixels: np.ndarray) -> np.ndarray:
    return load_predictor(root).predict(torch.from_numpy(pixels / np.float32(255))).numpy()


def decisions(root: Path) -> list[dict]:
    return list(json.loads((root / NAME).read_text())["decisions"].values())


@pytest.mark.parametrize(
    ("executor", "precision", "words", "near"),
    [
        ("torch", "fp32", "torch, channels-last, fp32", 1e-5),
        ("torch", "bf16", "torch, channels-last, bf16", 0.05),
        ("stacked", "fp32", "stacked ×3, folded, fp32", 1e-5),
        ("stacked", "bf16", "stacked ×3, folded, bf16", 0.05),
        ("compiled", "fp32", "compiled graph, folded, channels-last, fp32", 1e-5),
        ("onnx", "fp32", "onnxruntime, folded, fp32", 1e-5),
        ("onnx", "int8", "onnxruntime, folded, int8", 0.2),
    ],
)
def test_what_is_asked_for_gives_the_same_numbers(
    ensemble, pixels, executor, precision, words, near
):
    config = ServeConfig(
        executor=executor, precision=precision, tolerance=near, max_batch=4, cpus=2
    )
    found = load_executor(ensemble, "shoes", "2", config)
    assert words in found.kind
    assert (found.card.name, found.card.version, found.max_batch) == ("shoes", "2", 4)
    answer = found.run(pixels, None)
    difference = np.abs(answer.probabilities - expected(ensemble, pixels)).max()
    assert difference <= near
    assert precision == "fp32" or difference > 1e-7  # it is another arithmetic
    assert answer.members == 3


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-5), ("int8", 0.3)])
def test_one_network_in_onnx(tmp_path, pixels, precision, near):
    root = make_run(tmp_path / "a", mean=(0.4,), std=(0.3,))
    config = ServeConfig(executor="onnx", precision=precision, tolerance=near, max_batch=4)
    found = load_executor(root, "a", "1", config)
    assert found.kind == f"onnxruntime, folded, {precision}"
    many = np.concatenate([pixels] * 7)  # more than is computed at once
    for inputs in (many, many / np.float32(255)):
        answer = found.run(inputs, None)
        difference = np.abs(answer.probabilities - expected(root, many)).max()
        assert difference <= near and answer.members == 1
        assert precision == "fp32" or difference > 1e-7


def test_the_fastest_is_chosen_and_kept(ensemble, pixels, monkeypatch):
    monkeypatch.setattr("orchestrator.serve.executors.choose._PATIENCE_SECONDS", 600)
    found = load_executor(ensemble, "e", "1", ServeConfig())
    rows = found.run(pixels, None).probabilities
    assert np.abs(rows - expected(ensemble, pixels)).max() <= 1e-5
    (kept,) = decisions(ensemble)
    decision = kept["decision"]
    assert decision["kind"] == found.kind and decision["max_batch"] == found.max_batch
    assert decision["samples"] == "made-up images"
    measured = decision["measured"]
    assert {"torch", "stacked", "onnxruntime"} <= {
        words.split()[0].strip(",") for words in measured
    }
    assert all("largest difference" in m for w, m in measured.items() if "onnx" in w)
    # A decision is used again: another one than what is fastest here is obeyed.
    document = json.loads((ensemble / NAME).read_text())
    (key,) = document["decisions"]
    document["decisions"][key]["decision"]["way"] = {
        "engine": "torch",
        "precision": "fp32",
        "threads": 1,
    }
    document["decisions"][key]["decision"]["max_batch"] = 3
    (ensemble / NAME).write_text(json.dumps(document))
    again = load_executor(ensemble, "e", "1", ServeConfig())
    assert (again.kind, again.max_batch) == ("torch, channels-last, fp32, 3 members in turn", 3)


def test_other_settings_and_damaged_files_are_measured_anew(tmp_path, pixels):
    root = make_run(tmp_path / "a")
    config = ServeConfig(executor="torch", max_batch=4)
    load_executor(root, "a", "1", config)
    load_executor(root, "a", "1", ServeConfig(executor="torch", max_batch=8))
    assert [one["decision"]["max_batch"] for one in decisions(root)] == [4, 8]
    make_run(root, 7)
    load_executor(root, "a", "1", config)
    assert len({one["situation"]["model"] for one in decisions(root)}) == 2
    for damage in ("{", '{"format": 9}', '{"format": 1, "decisions": []}'):
        (root / NAME).write_text(damage)
        assert load_executor(root, "a", "1", config).max_batch == 4
        assert len(decisions(root)) == 1


def test_a_folder_that_cant_be_written_is_no_error(tmp_path, pixels):
    root = make_run(tmp_path / "a")
    (root / NAME).mkdir()
    found = load_executor(root, "a", "1", ServeConfig(executor="torch", max_batch=4))
    rows = found.run(pixels, None).probabilities
    assert np.abs(rows - expected(root, pixels)).max() <= 1e-6


def test_members_that_differ_run_side_by_side(tmp_path, pixels):
    a = make_run(tmp_path / "a", 0)
    b = make_run(tmp_path / "b", 1, model=MODEL | {"width": 0.125}, mean=(0.5,), std=(0.2,))
    root = make_ensemble(tmp_path / "e", [a, b], [0.75, 0.25], "logits")
    found = load_executor(root, "e", "1", ServeConfig(executor="onnx", max_batch=8, cpus=2))
    assert found.kind == "onnxruntime, folded, fp32, 2 members on 2 threads"
    rows = found.run(pixels, None).probabilities
    assert np.abs(rows - expected(root, pixels)).max() <= 1e-5
    with pytest.raises(UserError, match="members of one architecture"):
        load_executor(root, "e", "1", ServeConfig(executor="stacked"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bf16", "tolerance": 1e-9}, r"probabilities differ by .* above 1e-09"),
        ({"executor": "onnx", "precision": "bf16"}, "no such way"),
        ({"executor": "stacked"}, "no such way"),
    ],
)
def test_what_cant_be_had_is_refused(tmp_path, changes, message):
    root = make_run(tmp_path / "a")
    with pytest.raises(UserError, match=message) as caught:
        prepare(root, "a", "1", ServeConfig(**changes))
    assert caught.value.exit_code == 2 and "serve.tolerance" in str(caught.value)
    assert not (root / NAME).exists()


def test_preparing_leaves_the_threads_as_they_were(tmp_path):
    before = torch.get_num_threads()
    root = make_run(tmp_path / "a")
    card = prepare(root, "a", "1", ServeConfig(executor="torch", max_batch=2, cpus=2))
    assert card.shape == SHAPE and (root / NAME).exists()
    assert torch.get_num_threads() == before


# --- rules ---------------------------------------------------------------------------------


def test_the_best_batch_is_the_smallest_near_the_best_rate():
    # Samples a second: 100, 160, 195, 200, 160.
    seconds = {1: 0.01, 2: 0.0125, 4: 4 / 195, 8: 0.04, 16: 0.1}
    assert best_batch(seconds, on_the_way=0.0) == 4
    assert best_batch({1: 0.5}) == 1
    # The same time a sample at any size: the call is shared by more. 1/2, 2/3, 4/5 … of the rate.
    flat = {1 << n: 0.001 * (1 << n) for n in range(8)}
    assert best_batch(flat, on_the_way=0.0) == 1
    assert best_batch(flat, on_the_way=0.001) == 32  # 32/33 of it, the best is 128/129


def test_times_faster_is_a_geometric_mean_of_shared_sizes():
    ours, theirs = {1: 1.0, 8: 2.0, 32: 5.0}, {1: 2.0, 8: 16.0}
    assert times_faster(ours, theirs) == pytest.approx((2 * 8) ** 0.5)


class Paced:
    """Takes as long as a formula says, without taking any time."""

    def __init__(self, monkeypatch, by_samples) -> None:
        self.seconds = by_samples
        monkeypatch.setattr(measure, "seconds_of", lambda one, inputs: one.seconds(len(inputs)))

    def run(self, inputs, seconds) -> None:
        pass


@pytest.mark.parametrize(
    ("ours", "sizes"),
    [
        (2.0, [1, 8]),  # slower at two sizes: the third is left out
        (1.3, [1, 8, 32]),  # times 1 / 1.3 is not hopeless
        (0.5, [1, 8, 32]),
    ],
)
def test_what_is_much_slower_is_not_timed_to_the_end(monkeypatch, ours, sizes):
    inputs = np.zeros((4, 1, 2, 2), np.uint8)
    challenger = Paced(monkeypatch, lambda size: 1e-4 * size * ours)
    best = Paced(monkeypatch, lambda size: 1e-4 * size)
    first, second = duel(challenger, best, inputs)
    assert first == pytest.approx({size: 1e-4 * size * ours for size in sizes})
    assert second == pytest.approx({size: 1e-4 * size for size in sizes})


def test_larger_batches_are_tried_until_they_bring_nothing(monkeypatch):
    # Samples a second, 1 ms a call counted: 90.9, 95.2, 97.6, 98.8, 99.4; the last two are within
    # 2 % of 97.6.
    inputs = np.zeros((4, 1, 2, 2), np.uint8)
    found = throughput(Paced(monkeypatch, lambda size: 0.01 * size), inputs)
    assert found == pytest.approx({size: 0.01 * size for size in (1, 2, 4, 8, 16)})
    every = throughput(Paced(monkeypatch, lambda size: 0.01), inputs)
    assert list(every) == powers_of_two(128)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_every_power_of_two_is_warmed_up(most, sizes):
    assert powers_of_two(most) == sizes


def test_samples_repeat(tmp_path):
    card = load_predictor(make_run(tmp_path / "a")).card
    first, origin = sample_inputs(tmp_path / "a", card)
    second, _ = sample_inputs(tmp_path / "a", card)
    assert np.array_equal(first, second) and origin == "made-up images"
    assert first.shape == (SAMPLES, *SHAPE) and first.dtype == np.uint8
    assert len(np.unique(np.asarray(first).reshape(SAMPLES, -1), axis=0)) > SAMPLES // 2
    assert np.array_equal(take(first, SAMPLES + 2)[SAMPLES:], first[:2])
    assert take(["a", "b"], 3) == ["a", "b", "a"]
    assert small_spec().shape == SHAPE
