"""Spaces, samplers and schedulers against their definitions."""

import itertools
import json

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.config.duration import Duration, Interval
from orchestrator.config.pipeline import (
    Asha,
    Choice,
    Grid,
    Hyperband,
    IntUniform,
    LogUniform,
    Uniform,
)
from orchestrator.errors import ConfigError
from orchestrator.run_folder.paths import RunPaths
from orchestrator.sweep.samplers import build_sampler
from orchestrator.sweep.schedulers import Steps, build_scheduler
from orchestrator.sweep.space import build_space
from orchestrator.sweep.study import load_study
from tests.sweep.fake_trials import (
    EPOCHS,
    SPACE,
    STEPS_PER_EPOCH,
    job_of,
    make_config,
    make_planner,
    run_sweep,
)

# --- space ---------------------------------------------------------------------------------


def draw_many(config, count=200):
    dimension = build_space({"x": config})["x"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [dimension.suggest(study.ask(), "x") for _ in range(count)]


def test_ranges_are_drawn_as_they_say():
    values = np.array(draw_many(Uniform(low=2.0, high=4.0)))
    assert values.min() >= 2 and values.max() <= 4
    assert values.mean() == pytest.approx(3, abs=0.1)
    logs = np.log10(draw_many(LogUniform(low=1e-4, high=1e-2)))
    assert logs.mean() == pytest.approx(-3, abs=0.1)
    assert set(draw_many(IntUniform(low=3, high=10, step=3))) == {3, 6, 9}


@pytest.mark.parametrize(
    "values",
    [
        ("adam", "sgd"),
        (1, 2.5, None, True),
        (1, True, 1.5),
        ([0.9, 0.999], [0.8, 0.99]),
        ({"type": "cosine"}, {"type": "constant", "warmup": "5%"}),
        ("[1]", [1]),
    ],
)
def test_choices_come_back_as_the_user_wrote_them(values):
    found = draw_many(Choice(values=values))
    written = {json.dumps(value) for value in values}
    assert {json.dumps(value) for value in found} == written
    assert {type(value) for value in found} == {type(value) for value in values}


def test_asking_again_gives_the_same_value():
    dimension = build_space({"x": Choice(values=([1], [2], [3]))})["x"]
    trial = optuna.create_study().ask()
    first = dimension.suggest(trial, "x")
    assert all(dimension.suggest(trial, "x") == first for _ in range(5))


def test_a_choice_that_is_there_twice_is_refused():
    with pytest.raises(ValidationError, match="16 is there twice"):
        Choice(values=(16, 32, 16))


# --- grid ----------------------------------------------------------------------------------

GRID = {
    "optimizer.betas": {"type": "choice", "values": [[0.9, 0.999], [0.8, 0.99]]},
    "optimizer.eps": {"type": "choice", "values": [1e-8, 1e-6]},
    "seed": {"type": "int_uniform", "low": 0, "high": 5, "step": 2},
}


def test_a_grid_runs_every_combination_once(tmp_path):
    seen = []

    def make_job(spec):
        seen.append(dict(spec.overrides))
        return job_of(spec, value=lambda overrides, epoch: overrides["seed"] + epoch)

    # More trials than there are points: the grid ends the sweep.
    planner = run_sweep(make_config(20, space=GRID, sampler={"type": "grid"}), tmp_path, make_job)
    assert planner.planned == 12
    points = itertools.product([[0.9, 0.999], [0.8, 0.99]], [1e-8, 1e-6], [0, 2, 4])
    assert [tuple(one[key] for key in sorted(GRID)) for one in seen] == list(points)


def test_a_grid_is_complete_after_a_restart_with_running_trials(tmp_path):
    config = make_config(12, space=GRID, sampler={"type": "grid"})
    planner = make_planner(config, tmp_path)
    for _ in range(5):
        planner.next()
    again, seen = make_planner(config, tmp_path), []
    while job := again.next():
        seen.append(json.dumps(job.arguments["spec"].overrides, sort_keys=True))
    assert len(seen) == len(set(seen)) == 12


def test_grids_that_can_not_be_complete_are_refused():
    with pytest.raises(ValidationError, match=r"grid has 12 combinations.*set trials: 12"):
        make_config(8, space=GRID, sampler={"type": "grid"})
    with pytest.raises(ValidationError, match=r"optimizer\.lr is log_uniform"):
        make_config(8, sampler={"type": "grid"})
    space = build_space({"optimizer.lr": Uniform(low=0.1, high=0.2)})
    with pytest.raises(ConfigError, match="can be counted"):
        build_sampler(Grid(), space, 0)


def test_cmaes_refuses_what_it_would_only_draw_at_random():
    choice = {"optimizer.eps": {"type": "choice", "values": [1e-8, 1e-6]}}
    for space in (SPACE | choice, {"optimizer.lr": SPACE["optimizer.lr"]}):
        with pytest.raises(ValidationError, match="cmaes needs"):
            make_config(8, space=space, sampler={"type": "cmaes"})


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_learn_from_what_they_are_told(tmp_path, sampler):
    """The best is at a corner; draws after the first ones lie nearer to it than random ones."""
    planner, decays = make_planner(make_config(30, sampler={"type": sampler}), tmp_path), []
    while job := planner.next():
        decays.append(job.arguments["spec"].overrides["optimizer.weight_decay"])
        values = {"val/accuracy": 1 - decays[-1]}
        planner.report(job.id, {"step": 80, "epoch": 8.0, "values": values})
        planner.finished(job.id, None)
    assert np.mean(decays[15:]) < 0.3


# --- schedulers ----------------------------------------------------------------------------


def play(tmp_path, scheduler, curves, mode="max"):
    """Runs one trial a curve (values by epoch); returns how many epochs each one got."""

    def trial(*, worker, spec):
        for epoch, value in enumerate(curves[int(spec.id)], start=1):
            lengths[spec.id] = epoch
            yield {
                "step": epoch * STEPS_PER_EPOCH,
                "epoch": float(epoch),
                "values": {"val/accuracy": float(value)},
            }

    lengths = {}
    config = make_config(len(curves), mode=mode, scheduler=scheduler, sampler={"type": "random"})
    run_sweep(config, tmp_path, lambda spec: job_of(spec, trial))
    trials = load_study(RunPaths(tmp_path).study).trials
    for one in trials:
        assert (one.state.name == "PRUNED") == (len(one.intermediate_values) < EPOCHS)
        assert len(one.intermediate_values) == lengths[f"{one.number:03d}"]
    return list(lengths.values())


def asha_by_hand(curves, rungs, reduction, best_first):
    """Li et al.: at each rung the top 1/η of those that reached it go on, at least the best."""
    reached, lengths = {rung: [] for rung in rungs}, []
    for values in curves:
        length = EPOCHS
        for rung in rungs:
            if rung >= EPOCHS:
                break
            value = values[rung - 1]
            reached[rung].append(value)
            ranked = sorted(reached[rung], reverse=best_first)
            if value not in ranked[: max(1, len(ranked) // reduction)]:
                length = rung
                break
        lengths.append(length)
    return lengths


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("grace", "reduction", "rungs"), [(1, 2, (1, 2, 4)), (2, 3, (2, 6))])
def test_asha_equals_the_definition(tmp_path, mode, grace, reduction, rungs):
    rng = np.random.default_rng(reduction)
    curves = rng.random((18, 1)) + 0.2 * rng.random((18, EPOCHS))
    scheduler = {"type": "asha", "grace": f"{grace} epochs", "reduction": reduction}
    found = play(tmp_path, scheduler, curves, mode)
    assert found == asha_by_hand(curves, rungs, reduction, mode == "max")
    assert len(set(found)) >= 3


@pytest.mark.parametrize("mode", ["max", "min"])
def test_median_equals_the_definition(tmp_path, mode):
    rng = np.random.default_rng(0)
    curves = rng.random((20, 1)) + np.cumsum(rng.normal(0, 0.1, (20, EPOCHS)), axis=1)
    scheduler = {"type": "median", "grace": "2 epochs", "startup_trials": 3}
    best = np.maximum.accumulate if mode == "max" else np.minimum.accumulate
    finished, expected = [], []
    for values in curves:
        length = EPOCHS
        for epoch in range(2, EPOCHS):
            if len(finished) < 3:
                break
            middle = np.median([other[epoch - 1] for other in finished])
            mine = best(values)[epoch - 1]
            if mine < middle if mode == "max" else mine > middle:
                length = epoch
                break
        if length == EPOCHS:
            finished.append(values)
        expected.append(length)
    assert play(tmp_path, scheduler, curves, mode) == expected
    assert 2 in expected and expected.count(EPOCHS) > 3


def test_hyperband_stops_at_its_brackets_rungs(tmp_path):
    curves = np.random.default_rng(0).random((24, EPOCHS))
    scheduler = {"type": "hyperband", "grace": "1 epoch", "reduction": 2}
    lengths = play(tmp_path, scheduler, curves)
    assert set(lengths) == {1, 2, 4, EPOCHS}  # ⌊log₂ 8⌋ + 1 = 4 brackets
    pruner = build_scheduler(Hyperband(reduction=2), Steps(10, 80, Interval(10)))
    study = optuna.create_study(pruner=pruner)
    study.ask().should_prune()
    assert pruner._n_brackets == 4


def test_without_a_scheduler_every_trial_runs_to_its_end(tmp_path):
    curves = np.random.default_rng(0).random((6, EPOCHS))
    assert play(tmp_path, {"type": "none"}, curves) == [EPOCHS] * 6


@given(
    epoch=st.integers(1, 2000),
    total=st.integers(1, 10_000),
    grace=st.sampled_from(["1 epoch", "0.5 epochs", "3 epochs", "7 steps", "10%"]),
    every=st.sampled_from(["1 epoch", "0.5 epochs", "0.25 epochs", "3 steps"]),
)
def test_grace_is_a_whole_number_of_evaluations(epoch, total, grace, every):
    interval = Duration.parse(every).interval(epoch, total)
    wanted = Duration.parse(grace).steps(epoch, total)
    found = Steps(epoch, total, interval).grace(Duration.parse(grace))
    assert 1 <= found <= total
    if found < total:
        number = max(1, round(found / interval.length))
        assert 0 <= interval.point(number) - found <= 1
        assert number == 1 or abs(found - wanted) <= interval.length / 2 + 1


@pytest.mark.parametrize("epoch", [388, 389, 390, 399])
@pytest.mark.parametrize(("grace", "rungs"), [("0.5 epochs", (1, 2, 4)), ("1.5 epochs", (3,))])
def test_rungs_fall_on_evaluations_at_fractions_of_an_epoch(epoch, grace, rungs):
    """Half of 389 or 399 steps is no whole step: no rung may wait for the next evaluation."""
    total, every = 3 * epoch, Duration.parse("0.5 epochs").interval(epoch)
    steps = Steps(epoch, total, every)
    study = optuna.create_study(
        direction="maximize",
        pruner=build_scheduler(Asha(grace=Duration.parse(grace), reduction=2), steps),
    )

    def judged(values):
        """After which evaluation a trial is stopped."""
        trial = study.ask()
        for number, value in enumerate(values, start=1):
            trial.report(value, every.point(number))
            if trial.should_prune():
                return number
        return None

    assert judged([0.9] * 5) is None
    for rung in rungs:
        assert judged([0.9] * (rung - 1) + [0.1] * (6 - rung)) == rung
