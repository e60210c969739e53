import hashlib
import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from orchestrator.config.pipeline import AverageEnsemble, EnsembleConfig, GreedyEnsemble
from orchestrator.ensemble.build import build_ensemble, ensemble_predictions
from orchestrator.errors import DataError, RunFolderError
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.paths import RunPaths
from tests.ensemble.answers import draw, make_run


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / f"trials/00{i}", draw(i, skill=1 + i / 4)) for i in range(4)]


def test_the_file_says_who_and_how_good(tmp_path, runs):
    config = EnsembleConfig(method=GreedyEnsemble(start=2), size=6)
    built = build_ensemble(runs, config, tmp_path / "ensemble")
    content = json.loads((tmp_path / "ensemble/ensemble.json").read_text())
    assert content["format"] == 1
    assert content["method"] == {"type": "greedy", "start": 2, "metric": "nll"}
    assert content["combine"] == "probabilities"
    assert content["split_digest"] == "5" * 64
    for one in content["members"]:
        model = tmp_path / "ensemble" / one["path"] / "model.safetensors"
        assert one["path"].startswith("../trials/")
        assert one["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert sum(one["weight"] for one in content["members"]) == pytest.approx(1)

    mean = sum(
        one["weight"] * draw(i, skill=1 + i / 4).probabilities()
        for one in content["members"]
        for i in [int(one["path"][-1])]
    )
    labels = draw(0).labels
    assert content["select"]["accuracy"] == accuracy_score(labels, mean.argmax(1))
    assert content["select"]["nll"] == pytest.approx(log_loss(labels, mean, labels=range(4)))
    best = draw(
        int(content["best_single"]["path"][-1]),
        skill=1 + int(content["best_single"]["path"][-1]) / 4,
    )
    assert content["best_single"]["accuracy"] == accuracy_score(labels, best.logits.argmax(1))
    assert content["best_single"]["accuracy"] == max(
        accuracy_score(labels, draw(i, skill=1 + i / 4).logits.argmax(1)) for i in range(4)
    )
    assert set(content["diversity"]) > {"disagreement", "q_statistic"}
    assert built == read_ensemble(tmp_path / "ensemble")
    assert built == read_ensemble(tmp_path / "ensemble/ensemble.json")


def test_a_moved_sweep_keeps_its_ensemble(tmp_path, runs):
    build_ensemble(runs, EnsembleConfig(), tmp_path / "ensemble")
    shutil.copytree(tmp_path, tmp_path.parent / "moved" / "here")
    shutil.rmtree(tmp_path / "trials")
    moved = read_ensemble(tmp_path.parent / "moved/here/ensemble")
    assert all("moved/here/trials" in str(member.path) for member in moved.members)
    shutil.rmtree(tmp_path.parent / "moved")


def test_answers_of_the_ensemble_are_the_weighted_mean(tmp_path, runs):
    config = EnsembleConfig(method=AverageEnsemble(), size=3)
    built = build_ensemble(runs, config, tmp_path / "ensemble")
    answers = ensemble_predictions(built, "val")
    mean = np.mean(
        [
            draw(int(m.path.name), skill=1 + int(m.path.name) / 4).probabilities()
            for m in built.members
        ],
        axis=0,
    )
    np.testing.assert_allclose(answers.probabilities(), mean, rtol=1e-5)
    with pytest.raises(RunFolderError, match="no predictions of 'test'"):
        ensemble_predictions(built, "test")


def test_a_run_that_is_named_twice_counts_once(tmp_path, runs):
    config = EnsembleConfig(method=AverageEnsemble(), size=5)
    built = build_ensemble(
        [runs[0], runs[0], tmp_path / "trials/../trials/000"], config, tmp_path / "e"
    )
    assert [(member.path.name, member.weight) for member in built.members] == [("000", 1.0)]


def test_other_splits_are_refused(tmp_path, runs):
    other = make_run(tmp_path / "other", draw(9), split_digest="6" * 64)
    with pytest.raises(RunFolderError, match=r"same split.*000.*5{12}.*other.*6{12}"):
        build_ensemble([*runs, other], EnsembleConfig(), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_other_labels_are_refused(tmp_path, runs):
    other = make_run(tmp_path / "other", draw(9), label_names=("a", "b", "d", "c"))
    with pytest.raises(RunFolderError, match="same labels"):
        build_ensemble([*runs, other], EnsembleConfig(), tmp_path / "e")


def test_candidates_that_are_not_trained_are_refused(tmp_path, runs):
    with pytest.raises(RunFolderError, match="at least one"):
        build_ensemble([], EnsembleConfig(), tmp_path / "e")
    RunPaths(runs[1]).predictions("select").unlink()
    with pytest.raises(RunFolderError, match="no predictions of 'select'"):
        build_ensemble(runs, EnsembleConfig(), tmp_path / "e")
    RunPaths(runs[0]).model_json.unlink()
    with pytest.raises(RunFolderError, match="no trained model"):
        build_ensemble(runs, EnsembleConfig(), tmp_path / "e")


def test_an_empty_select_split_is_refused(tmp_path):
    run = make_run(tmp_path / "a", draw(0, samples=0, labels=np.zeros(0, np.int64)))
    with pytest.raises(DataError, match=r"select split is empty.*data\.split\.select"):
        build_ensemble([run], EnsembleConfig(), tmp_path / "e")


def test_a_changed_or_missing_member_is_noticed(tmp_path, runs):
    built = build_ensemble(runs, EnsembleConfig(), tmp_path / "ensemble")
    model = RunPaths(built.members[0].path).model
    model.write_bytes(b"trained again")
    with pytest.raises(RunFolderError, match="not the model"):
        read_ensemble(tmp_path / "ensemble")
    model.unlink()
    with pytest.raises(RunFolderError, match="its model is gone"):
        read_ensemble(tmp_path / "ensemble")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {**content, "format": 2},
        lambda content: {**content, "members": []},
        lambda content: {**content, "combine": "votes"},
        lambda content: {**content, "members": [{**content["members"][0], "weight": 0.3}]},
        lambda content: {key: content[key] for key in content if key != "split_digest"},
        lambda content: [content],
    ],
)
def test_a_damaged_file_is_refused(tmp_path, runs, damage):
    build_ensemble(runs, EnsembleConfig(), tmp_path / "ensemble")
    file = tmp_path / "ensemble/ensemble.json"
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(RunFolderError, match="damaged"):
        read_ensemble(file)


def test_no_ensemble_says_how_to_make_one(tmp_path):
    with pytest.raises(RunFolderError, match="orch ensemble"):
        read_ensemble(tmp_path)
