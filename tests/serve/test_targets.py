from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from orchestrator.errors import RunFolderError, UserError
from orchestrator.files import write_json
from orchestrator.run_folder.paths import RunPaths
from orchestrator.serve.targets import Served, find_one, find_served
from tests.serve.serving import make_ensemble, make_run


@pytest.fixture
def sweep(tmp_path: Path) -> RunPaths:
    """A sweep of two trained trials."""
    paths = RunPaths(tmp_path / "shoes")
    for n in range(2):
        make_run(paths.trial(n).root, n)
    write_json(paths.sweep_json, {"format": 1})
    return paths


def add_ensemble(sweep: RunPaths) -> None:
    members = [make_run(sweep.root / f"m{n}", n) for n in range(2)]
    make_ensemble(sweep.ensemble, members, [0.5, 0.5])


def test_a_run_has_its_folders_name(tmp_path):
    root = make_run(tmp_path / "one run")
    assert find_served([str(root)], tmp_path) == [Served("one-run", root)]


def test_a_sweep_offers_its_ensemble_and_its_student(sweep):
    add_ensemble(sweep)
    runs = sweep.root.parent
    assert find_served(["shoes"], runs) == [Served("shoes", sweep.ensemble)]
    make_run(sweep.student.root)
    assert find_served(["shoes"], runs) == [
        Served("shoes", sweep.ensemble),
        Served("shoes-student", sweep.student.root),
    ]
    assert find_one("shoes", runs) == Served("shoes", sweep.ensemble)


def test_a_sweep_without_ensemble_offers_its_best_trial(sweep):
    study = optuna.create_study(storage=f"sqlite:///{sweep.study}", direction="maximize")
    for key, value in {"mode": "max", "monitor": "val/accuracy", "steps_per_epoch": 10}.items():
        study.set_user_attr(key, value)
    for value in (0.25, 0.75):
        trial = study.ask()
        trial.report(value, 10)
        study.tell(trial, value)
    assert find_one("shoes", sweep.root.parent) == Served("shoes", sweep.trial(1).root)


def test_a_sweep_without_trained_trials_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    optuna.create_study(storage=f"sqlite:///{tmp_path}/empty/study.db")
    with pytest.raises(RunFolderError, match="no trained trial"):
        find_served(["empty"], tmp_path)


def test_parts_of_a_sweep_carry_its_name(sweep):
    add_ensemble(sweep)
    make_run(sweep.student.root)
    targets = ["shoes/trials/001", "shoes/student", "shoes/ensemble"]
    found = find_served(targets, sweep.root.parent)
    assert [one.name for one in found] == ["shoes-001", "shoes-student", "shoes-ensemble"]


def test_one_name_for_two_models_is_refused(tmp_path):
    targets = [str(make_run(tmp_path / side / "same")) for side in "ab"]
    with pytest.raises(UserError, match="two models would be called 'same'"):
        find_served(targets, tmp_path)
    assert len(find_served([targets[0], targets[0]], tmp_path)) == 1


def test_an_unknown_target_is_refused(tmp_path):
    make_run(tmp_path / "shoes")
    with pytest.raises(RunFolderError, match="shoes"):
        find_served(["shoe"], tmp_path)
