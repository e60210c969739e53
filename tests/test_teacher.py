"""Teachers: what they say, about which images, and which ones are refused."""

import numpy as np
import pytest
import torch

from orchestrator.config.base import build
from orchestrator.config.data import Crop, DataConfig, Mixup, Synthetic
from orchestrator.config.load import config_from_mapping
from orchestrator.data import memory
from orchestrator.data.memory import describe
from orchestrator.distill import baseline_config, student_config
from orchestrator.errors import DataError, RunFolderError
from orchestrator.host import SingleWorker
from orchestrator.run_folder.model_file import load_model
from orchestrator.run_folder.paths import RunPaths, Target
from orchestrator.run_folder.predictions import Predictions, write_predictions
from orchestrator.tasks.distill import TEACHER
from orchestrator.teacher import (
    LiveTeacher,
    TaughtLoader,
    Teacher,
    check_teacher,
    find_teacher,
    stored_answers,
)
from tests.serve.serving import make_ensemble, make_run

SOURCE = Synthetic(samples=60, test_samples=12, size=12, classes=3, channels=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    memory._memory.clear()
    yield
    memory._memory.clear()


@pytest.fixture
def info():
    return describe(DataConfig(source=SOURCE))


def run_of(root, info, seed=0, **changes):
    known = {
        "shape": info.shape,
        "mean": info.mean,
        "std": info.std,
        "label_names": info.label_names,
        "data_digest": info.digest,
        "split_digest": info.split_digest,
    }
    return make_run(root, seed, **(known | changes))


def loader(*augment):
    data = DataConfig(source=SOURCE, augment=augment)
    return build(
        "loader",
        data.loader,
        data=data,
        seed=3,
        batch_size=16,
        micro_batch=8,
        worker=SingleWorker(),
        extra_targets={},
    )


def batch():
    return next(loader().train(0)).micro_batches[0]


def answer(root, images):
    network, _ = load_model(root)
    with torch.no_grad():
        return network(images)


def test_one_model_gives_its_own_logits(tmp_path, info):
    root = run_of(tmp_path / "run", info)
    teacher = LiveTeacher(find_teacher(Target("run", root)), info, SingleWorker())
    part = batch()
    torch.testing.assert_close(teacher.logits(part), answer(root, part.inputs["image"]))


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_an_ensemble_gives_its_weighted_mean(tmp_path, info, combine):
    roots = [run_of(tmp_path / f"run{n}", info, seed=n) for n in range(2)]
    folder = make_ensemble(tmp_path / "ensemble", roots, [0.25, 0.75], combine)
    teacher = LiveTeacher(find_teacher(Target("ensemble", folder)), info, SingleWorker())
    part = batch()
    one, two = (answer(root, part.inputs["image"]).double() for root in roots)
    if combine == "logits":
        expected = (0.25 * one + 0.75 * two).softmax(1)
    else:
        expected = 0.25 * one.softmax(1) + 0.75 * two.softmax(1)
    found = teacher.logits(part).double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_member_is_fed_with_its_own_normalisation(tmp_path, info):
    root = run_of(tmp_path / "run", info, mean=(0.1,), std=(0.7,), data_digest="0" * 64)
    teacher = LiveTeacher(find_teacher(Target("run", root)), info, SingleWorker())
    part = batch()
    pixels = part.inputs["image"] * info.std[0] + info.mean[0]
    expected = answer(root, (pixels - 0.1) / 0.7)
    torch.testing.assert_close(teacher.logits(part), expected, rtol=1e-4, atol=1e-5)


def test_a_student_hears_about_the_very_images_that_it_sees(tmp_path, info):
    root = run_of(tmp_path / "run", info)
    teacher = LiveTeacher(find_teacher(Target("run", root)), info, SingleWorker())
    plain, augmented = loader(), loader(Crop(padding=2), Mixup())
    taught = TaughtLoader(augmented, teacher)
    assert taught.steps_per_epoch == augmented.steps_per_epoch
    pairs = zip(taught.train(1, 1), augmented.train(1, 1), plain.train(1, 1), strict=True)
    for found, same, other in pairs:
        assert (found.epoch, found.index, found.numbers) == (1, same.index, same.numbers)
        micros = zip(found.micro_batches, same.micro_batches, other.micro_batches, strict=True)
        for one, two, three in micros:
            assert torch.equal(one.inputs["image"], two.inputs["image"])
            assert torch.equal(one.targets["label"], two.targets["label"])
            expected = answer(root, two.inputs["image"])
            torch.testing.assert_close(one.targets[TEACHER], expected)
            away = answer(root, three.inputs["image"]) - one.targets[TEACHER]
            assert away.abs().max() > 1e-3
    assert TEACHER not in next(taught.evaluate("val")).targets


def test_teaching_draws_no_random_numbers(tmp_path, info):
    root = run_of(
        tmp_path / "run", info, model={"type": "resnet18", "width": 0.0625, "dropout": 0.5}
    )
    teacher = LiveTeacher(find_teacher(Target("run", root)), info, SingleWorker())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = teacher.logits(batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(teacher.logits(batch()), first)
    assert not first.requires_grad


def test_stored_answers_are_found_by_id(tmp_path):
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = Predictions(np.array([4, 1]), np.array([0, 2]), logits)
    teacher = Teacher(tmp_path, [(tmp_path, 1.0)])
    with pytest.raises(DataError, match="no predictions on the train split; use `orch distill"):
        stored_answers(teacher)
    path = RunPaths(tmp_path).predictions("train")
    path.parent.mkdir()
    write_predictions(path, found)
    rows = stored_answers(teacher)
    assert rows.shape == (5, 3)
    assert np.array_equal(rows[[4, 1]], logits)
    assert np.isnan(rows[[0, 2, 3]]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_digest": "0" * 64}, r"another split of the same data.*use its data\.split"),
        ({"label_names": ("a", "b", "c")}, r"trained on images of shape \(1, 12, 12\)"),
        ({"shape": (1, 16, 16)}, r"shape \(1, 16, 16\).*gives \(1, 12, 12\)"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(tmp_path, info, changes, message):
    root = run_of(tmp_path / "run", info, **changes)
    with pytest.raises(DataError, match=message):
        check_teacher(find_teacher(Target("run", root)), info)


def test_other_data_may_teach_whatever_its_split(tmp_path, info):
    root = run_of(tmp_path / "run", info, data_digest="0" * 64, split_digest="1" * 64)
    check_teacher(find_teacher(Target("run", root)), info)


def test_a_sweep_teaches_through_its_ensemble(tmp_path, info):
    sweep = tmp_path / "sweep"
    (sweep / "trials").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="has no ensemble; make one with `orch ensemble`"):
        find_teacher(Target("sweep", sweep))
    roots = [run_of(sweep / f"run{n}", info, seed=n) for n in range(2)]
    make_ensemble(sweep / "ensemble", roots, [0.5, 0.5])
    found = find_teacher(Target("sweep", sweep))
    assert [path for path, _ in found.members] == [root.resolve() for root in roots]


def test_labels_teach_a_student_as_they_teach_its_baseline(tmp_path):
    loss = {"type": "focal", "gamma": 1.5}
    config = config_from_mapping(
        {
            "name": "taught",
            "data": {"source": {"type": "digits"}},
            "model": {"type": "googlenet"},
            "task": {"type": "classify", "loss": loss, "auxiliary_weight": 0.7},
            "distill": {"temperature": 2.5, "soft_weight": 0.6},
        }
    )
    teacher = Teacher(tmp_path, ((tmp_path, 1.0),), "probabilities")
    student = student_config(config, config.distill, teacher).task
    baseline = baseline_config(config, config.distill).task
    assert (student.type, student.temperature, student.soft_weight) == ("distill", 2.5, 0.6)
    assert student.loss == baseline.loss == config.task.loss
    assert student.auxiliary_weight == baseline.auxiliary_weight == 0.7
