import pytest

from orchestrator.sweep.events import (
    SweepState,
    TrialFailed,
    TrialFinished,
    TrialPruned,
    TrialReported,
    TrialRetried,
    TrialStarted,
)


def fold(*events):
    state = SweepState()
    for event in events:
        state.apply(event)
    return state


def test_a_trial_becomes_a_row():
    state = fold(
        TrialStarted("001", 5.0, {"optimizer.lr": 0.1}),
        TrialStarted("000", 0.0, {"optimizer.lr": 0.2}),
        TrialReported("000", 10.0, step=100, epoch=1.0, value=0.6, best=0.6),
        TrialReported("000", 14.0, step=200, epoch=2.0, value=0.5, best=0.6),
    )
    first, second = state.rows
    assert (first.id, second.id) == ("000", "001")
    assert (first.step, first.epoch, first.value, first.best) == (200, 2.0, 0.5, 0.6)
    assert first.rate == pytest.approx(25)
    assert first.params == {"optimizer.lr": 0.2}
    assert (second.rate, second.best) == (None, None)
    assert state.count("running") == 2


def test_ends_are_told_apart():
    state = fold(
        *(TrialStarted(f"00{n}", 0.0, {}) for n in range(3)),
        TrialFinished("000", 1.0, best=0.9),
        TrialPruned("001", 1.0, step=30, best=0.2),
        TrialFailed("002", 1.0, why="no memory"),
    )
    assert [row.state for row in state.rows] == ["complete", "pruned", "failed"]
    assert [row.why for row in state.rows] == ["", "pruned at step 30", "no memory"]
    assert [row.best for row in state.rows] == [0.9, 0.2, None]


def test_a_restart_does_not_count_in_the_rate():
    state = fold(
        TrialStarted("000", 0.0, {}),
        TrialReported("000", 10.0, step=100, epoch=1.0, value=0.6, best=0.6),
        TrialRetried("000", 11.0, why="the worker died", attempt=1),
    )
    assert state.rows[0].why == "the worker died"
    state.apply(TrialStarted("000", 60.0, {}, resumed=True))
    row = state.apply(TrialReported("000", 70.0, step=200, epoch=2.0, value=0.7, best=0.7))
    assert row.rate is None
    assert row.best == 0.7
    row = state.apply(TrialReported("000", 72.0, step=300, epoch=3.0, value=0.7, best=0.7))
    assert row.rate == pytest.approx(50)
