import json
import math

import optuna
import pytest

from orchestrator.config.base import part
from orchestrator.errors import TrialError
from orchestrator.run_folder.paths import RunPaths
from orchestrator.sweep.events import (
    TrialFailed,
    TrialFinished,
    TrialReported,
    TrialRetried,
    TrialStarted,
)
from orchestrator.sweep.leaderboard import leaderboard, write_leaderboard
from orchestrator.sweep.study import load_study
from tests.sweep.fake_trials import (
    SPACE,
    job_of,
    make_config,
    make_planner,
    refuse_above,
    run_sweep,
)


def report(step, **values):
    named = {name.replace("_", "/"): value for name, value in values.items()}
    return {"step": step, "epoch": step / 10, "values": named}


def trials_of(root):
    return load_study(RunPaths(root).study).trials


def test_trials_are_numbered_with_folders_and_their_best_value_is_told(tmp_path):
    planner = make_planner(make_config(trials=2), tmp_path)
    first, second = planner.next(), planner.next()
    assert planner.next() is None
    assert [first.id, second.id] == ["000", "001"]
    spec = second.arguments["spec"]
    assert spec.folder == tmp_path / "trials/001"
    assert not spec.resume
    assert set(spec.overrides) == set(SPACE)
    for step, value in ((10, 0.5), (20, 0.8), (30, 0.7)):
        assert not planner.report("000", report(step, val_accuracy=value, val_loss=1.0))
    planner.finished("000", None)
    trial = trials_of(tmp_path)[0]
    assert trial.state.name == "COMPLETE"
    assert trial.value == 0.8
    assert trial.intermediate_values == {10: 0.5, 20: 0.8, 30: 0.7}


def test_optuna_itself_reads_the_study(tmp_path):
    run_sweep(make_config(trials=3, mode="min"), tmp_path)
    study = optuna.load_study(study_name="fake", storage=f"sqlite:///{tmp_path}/study.db")
    assert study.direction.name == "MINIMIZE"
    for trial in study.trials:
        assert trial.value == min(trial.intermediate_values.values())
        assert trial.user_attrs["folder"] == f"trials/{trial.number:03d}"
        assert trial.user_attrs["overrides"] == trial.params


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails_the_trial(tmp_path, value):
    planner = make_planner(make_config(trials=1), tmp_path)
    planner.next()
    assert not planner.report("000", report(10, val_accuracy=0.5))
    assert planner.report("000", report(20, val_accuracy=value))
    planner.finished("000", None)
    trial = trials_of(tmp_path)[0]
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["why"] == f"val/accuracy became {value} at step 20"


def test_a_metric_that_never_comes_fails_the_trial_at_its_first_evaluation(tmp_path):
    planner = make_planner(make_config(trials=2, monitor="val/f1"), tmp_path)
    planner.next(), planner.next()
    assert not planner.report("000", report(5, train_loss=2.0))
    assert planner.report("000", report(10, val_accuracy=0.5, val_loss=1.0))
    planner.finished("000", None)
    planner.finished("001", None)
    first, second = trials_of(tmp_path)
    assert first.state.name == second.state.name == "FAIL"
    assert first.user_attrs["why"].endswith("the trial reported val/accuracy, val/loss")
    assert second.user_attrs["why"].endswith("the trial reported nothing")


def test_an_exception_fails_the_trial_and_the_sweep_goes_on(tmp_path):
    def broken(*, worker, spec):
        yield report(10, val_accuracy=0.5)
        raise TrialError("out of memory")

    def make_job(spec):
        return job_of(spec, broken) if spec.id == "001" else job_of(spec)

    events = []
    run_sweep(make_config(trials=3), tmp_path, make_job, events)
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE", "FAIL", "COMPLETE"]
    failed = [event for event in events if isinstance(event, TrialFailed)]
    assert [(event.id, event.why) for event in failed] == [("001", "out of memory")]


def test_a_derived_file_that_is_not_valid_fails_that_trial_only(tmp_path):
    run_sweep(make_config(trials=12, sampler={"type": "random"}), tmp_path, refuse_above(0.5))
    trials = trials_of(tmp_path)
    assert len(trials) == 12
    for trial in trials:
        refused = trial.params["optimizer.weight_decay"] > 0.5
        assert trial.state.name == ("FAIL" if refused else "COMPLETE")
        if refused:
            assert trial.user_attrs["why"] == "optimizer.weight_decay: at most 0.5"
    assert {trial.state.name for trial in trials} == {"FAIL", "COMPLETE"}


def test_a_trial_whose_worker_died_is_started_again_until_it_is_enough(tmp_path):
    events = []
    planner = make_planner(make_config(trials=2, max_failures=2), tmp_path, events=events)
    overrides = planner.next().arguments["spec"].overrides
    for attempt in (1, 2):
        assert not planner.report("000", report(10, val_accuracy=0.5))
        assert not planner.report("000", report(10 + 10 * attempt, val_accuracy=0.5 + attempt))
        planner.finished("000", "the worker died", crashed=True)
        again = planner.next().arguments["spec"]
        assert (again.id, again.resume, again.overrides) == ("000", True, overrides)
    planner.finished("000", "the worker died", crashed=True)
    assert planner.next().id == "001"
    trial = trials_of(tmp_path)[0]
    assert (trial.state.name, trial.user_attrs["why"]) == ("FAIL", "the worker died")
    assert trial.intermediate_values == {10: 0.5, 20: 1.5, 30: 2.5}
    retries = [event.attempt for event in events if isinstance(event, TrialRetried)]
    assert retries == [1, 2]


def test_a_trial_whose_worker_died_after_its_end_is_complete(tmp_path):
    """As while it uploads to a tracker: started again, its folder would refuse it as finished."""
    planner = make_planner(make_config(trials=2, max_failures=1), tmp_path)
    job = planner.next()
    reports = list(job.call(worker=None, **job.arguments))
    for one in reports[:-1]:  # the last one died with the worker
        planner.report(job.id, one)
    planner.finished(job.id, "the worker died", crashed=True)
    trial = trials_of(tmp_path)[0]
    assert (trial.state.name, trial.user_attrs.get("why")) == ("COMPLETE", None)
    assert trial.value == reports[-1]["values"]["val/accuracy"]
    assert len(trial.intermediate_values) == len(reports)
    assert planner.next().id == "001"


def test_deaths_are_counted_over_restarts_of_the_driver(tmp_path):
    config = make_config(trials=1, max_failures=1)
    planner = make_planner(config, tmp_path)
    planner.next()
    planner.finished("000", "the worker died", crashed=True)
    again = make_planner(config, tmp_path)
    assert again.next().id == "000"
    again.finished("000", "the worker died", crashed=True)
    assert again.next() is None
    assert trials_of(tmp_path)[0].state.name == "FAIL"


def test_events_come_in_order_with_the_best_so_far(tmp_path):
    events = []
    planner = make_planner(make_config(trials=1, mode="min"), tmp_path, events=events)
    planner.next()
    for step, value in ((10, 0.5), (20, 0.3), (30, 0.4)):
        planner.report("000", report(step, val_accuracy=value))
    planner.finished("000", None)
    kinds = [TrialStarted, TrialReported, TrialReported, TrialReported, TrialFinished]
    assert [type(event) for event in events] == kinds
    assert [event.best for event in events[1:]] == [0.5, 0.3, 0.3, 0.3]
    assert [event.time for event in events] == sorted(event.time for event in events)


@pytest.mark.parametrize(
    "sampler", [{"type": "random"}, {"type": "tpe", "startup_trials": 2}, {"type": "cmaes"}]
)
def test_the_same_seed_draws_the_same_and_another_seed_others(tmp_path, sampler):
    def drawn(folder, seed):
        planner = make_planner(make_config(trials=5, seed=seed, sampler=sampler), tmp_path / folder)
        while job := planner.next():
            decay = job.arguments["spec"].overrides["optimizer.weight_decay"]
            planner.report(job.id, report(80, val_accuracy=1 - decay))
            planner.finished(job.id, None)
        return [trial.params for trial in trials_of(tmp_path / folder)]

    first = drawn("a", seed=0)
    assert drawn("b", seed=0) == first
    assert drawn("c", seed=1) != first
    assert len({params["optimizer.lr"] for params in first}) == 5


def test_a_plugins_sampler_is_used_like_ours(tmp_path):
    from orchestrator.config.base import _ENTRIES
    from orchestrator.config.pipeline import Random

    def mine(config, *, space, seed):
        return optuna.samplers.RandomSampler(seed=seed)

    @part("sampler", "mine", build=mine)
    class Mine(Random):
        type: str = "mine"

    try:
        run_sweep(make_config(trials=2, sampler={"type": "mine"}), tmp_path)
    finally:
        del _ENTRIES["sampler"]["mine"]
    assert len(trials_of(tmp_path)) == 2


def test_a_trial_with_another_batch_is_as_long_as_it_says(tmp_path):
    """With twice the batch a trial has half the file's 80 steps, with half of it twice as many."""

    def of(step, value, total):
        values = {"val/accuracy": value}
        return {"step": step, "epoch": 8 * step / total, "total": total, "values": values}

    asha = {"type": "asha", "grace": "1 epoch", "reduction": 2}
    planner = make_planner(make_config(trials=3, scheduler=asha), tmp_path)
    same, short, long = planner.next().id, planner.next().id, planner.next().id
    for step in (40, 80):
        assert not planner.report(same, of(step, 0.9, total=80))
    # Nothing is saved by a stop at the last step, and much by one before it.
    assert not planner.report(short, of(40, 0.1, total=40))
    assert planner.report(long, of(80, 0.1, total=160))
    planner.finished(short, None)
    rows = {row.id: row for row in leaderboard(RunPaths(tmp_path))}
    assert [(rows[one].step, rows[one].epoch) for one in (same, short)] == [(40, 4.0), (40, 8.0)]
    # A driver that goes on knows it still.
    make_planner(make_config(trials=3, scheduler=asha), tmp_path)
    rows = {row.id: row for row in leaderboard(RunPaths(tmp_path))}
    assert (rows[long].state, rows[long].epoch) == ("pruned", 4.0)


# --- leaderboard ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "order"), [("max", ["001", "002", "000"]), ("min", ["000", "002", "001"])]
)
def test_the_leaderboard_is_ordered_by_the_best_value(tmp_path, mode, order):
    planner = make_planner(make_config(trials=5, mode=mode), tmp_path)
    specs = [planner.next().arguments["spec"] for _ in range(5)]
    for trial, value in (("000", 0.2), ("001", 0.9), ("002", 0.4)):
        for step in (10, 20):
            planner.report(trial, report(step, val_accuracy=value))
        planner.finished(trial, None)
    planner.finished("003", "no memory")
    rows = leaderboard(RunPaths(tmp_path))
    assert [row.id for row in rows] == [*order, "003", "004"]
    assert [row.state for row in rows] == ["complete"] * 3 + ["failed", "running"]
    assert (rows[0].step, rows[0].epoch) == (10, 1.0)
    assert rows[0].params == specs[int(order[0])].overrides
    assert rows[3].why == "no memory"
    assert rows[3].value is None

    write_leaderboard(RunPaths(tmp_path), rows)
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    assert (content["format"], content["monitor"], content["mode"]) == (1, "val/accuracy", mode)
    assert [row["id"] for row in content["trials"]] == [row.id for row in rows]
    assert content["trials"][0]["params"] == dict(rows[0].params)


def test_pruned_trials_say_when_and_keep_their_best(tmp_path):
    asha = {"type": "asha", "grace": "1 epoch", "reduction": 2}
    run_sweep(make_config(trials=6, scheduler=asha), tmp_path)
    rows = leaderboard(RunPaths(tmp_path))
    pruned = [row for row in rows if row.state == "pruned"]
    assert pruned
    for row in pruned:
        assert row.why == f"pruned at step {row.step}"
        assert row.value is not None
        assert row.folder == f"trials/{row.id}"


def test_wall_time_is_summed_over_attempts(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("orchestrator.sweep.planner.time.time", lambda: now[0])
    planner = make_planner(make_config(trials=1), tmp_path)
    planner.next()
    now[0] += 5
    planner.finished("000", "the worker died", crashed=True)
    now[0] += 100
    planner.next()
    planner.report("000", report(10, val_accuracy=0.5))
    now[0] += 2
    planner.finished("000", None)
    assert leaderboard(RunPaths(tmp_path))[0].seconds == 7.0
